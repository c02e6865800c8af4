"""The figures of a running run for Prometheus: read from the tally when scraped, never while working.

Tally <--on a scrape-- /metrics --> infinity_mm_samples_done{pass="journeys"} 812
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infinity_mm.errors import explain, need
from infinity_mm.runtime.tally import Tally, calls

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise need("prometheus_client", extra="metrics", purpose="--metrics-port") from error


class TallyCollector(Collector):
    """What a scrape gets."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family per figure, one series per pass."""
        passes = list(self._tally.passes.values())
        counts = {one.name: one.counts for one in passes}
        gauges = {
            "units": ("Work shards of the pass", lambda one: one.num_units),
            "units_done": ("Work shards that are committed", lambda one: one.units_done),
            "samples": ("Samples the pass will see, where known", lambda one: one.num_inputs or 0),
            "samples_done": ("Samples it is done with", lambda one: counts[one.name]["in"]),
            "pairs_kept": ("Question-answer pairs in conversations", lambda one: counts[one.name]["pairs"]),
            "calls": (
                "Requests to models, recorded ones included",
                lambda one: calls(counts[one.name], "calls"),
            ),
            "calls_from_journal": (
                "Requests that the journal answered",
                lambda one: calls(counts[one.name], "from_journal"),
            ),
            "calls_failed": ("Requests without a reply", lambda one: calls(counts[one.name], "failed_calls")),
            "prompt_tokens": (
                "Prompt tokens of all replies",
                lambda one: calls(counts[one.name], "prompt_tokens"),
            ),
            "cached_tokens": (
                "Of them, tokens that prefix caches had, as servers report them",
                lambda one: calls(counts[one.name], "cached_tokens"),
            ),
            "cached_share": (
                "Share of prompt tokens that prefix caches had",
                lambda one: one.cached_share or 0,
            ),
            "tokens_per_second": (
                "Tokens of replies that models gave lately, a second",
                lambda one: one.rate("tokens") if one.state == "running" else 0,
            ),
            "tokens": ("Tokens of replies that models gave now", lambda one: counts[one.name]["tokens_now"]),
            "eta_seconds": ("Seconds to the end of the pass, where known", lambda one: one.eta_s or 0),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(f"infinity_mm_{name}", text, labels=["pass"])
            for one in passes:
                family.add_metric([one.name], value(one))
            yield family
        fates = GaugeMetricFamily(
            "infinity_mm_fates", "What became of samples", labels=["pass", "stage", "fate", "reason"]
        )
        for one in passes:
            for (stage, fate), reasons in one.fates.items():
                for reason, number in reasons.items():
                    fates.add_metric([one.name, stage, fate, reason], number)
        yield fates


@contextmanager
def serve_metrics(tally: Tally, *, port: int, host: str) -> Iterator[int]:
    """Serve /metrics in a thread; yields the port, which the system chooses for 0."""
    registry = CollectorRegistry()
    registry.register(TallyCollector(tally))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise explain(
            what=f"cannot listen on {host}:{port}: {error.strerror or error}",
            where="--metrics-port",
            fix="take another port, or end the process that has this one",
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
