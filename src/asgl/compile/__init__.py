"""The compiler: a program is traced to a graph, passes look at it and change it, and it runs
without the program's Python.

    symbols     what stands for values that are not known yet
    tracer      runs a program against streams that only write down what is submitted
    graph       what it wrote down: to be printed, run, and run in batches
    passes      the prefix that all runs share; code movement, which makes it longer
    graph_run   submits a graph to real streams
    function    `asgl.function`: programs that can be compiled

The compiler of the SGLang paper (arXiv 2312.07104, appendix), on ops that are values.
"""
