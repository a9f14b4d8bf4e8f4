"""Views of runs, live and from traces on disk: readers of events, which know nothing of the engine
or the language.

    async with asgl.Runtime("smollm2-135m", tracers=[asgl.viewer.Live()]) as rt: ...
"""

from asgl.viewer.live import Live
from asgl.viewer.view import View

__all__ = ["Live", "View"]
