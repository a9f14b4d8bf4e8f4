"""What other systems are told of a run: spans for OpenTelemetry (`asgl[otel]`), and metrics for
Prometheus (`asgl[metrics]`). Both are tracers:

    async with asgl.Runtime("smollm2-135m", tracers=[Spans(), Metrics()]) as rt: ...
"""

from asgl.telemetry.metrics import Metrics
from asgl.telemetry.spans import Spans

__all__ = ["Metrics", "Spans"]
