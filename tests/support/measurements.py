"""Results of benchmarks, made up."""

from benchmarks.results import Measurement, Memory, Run, spread


def one(
    scenario: str, implementation: str, per_second: float, *, n: int = 0, late: tuple[float, ...] = (), **notes: float
) -> Measurement:
    """A measurement whose CPU per job is 1000 divided by its rate, half of it the worker's."""
    each = 500 / per_second
    held = (
        {"api": 10, "worker": 2**20 * int(notes["waiting"]), "temporal": 30, "postgres": 40}
        if "waiting" in notes
        else {}
    )
    return Measurement(
        scenario=scenario,
        implementation=implementation,
        round=n,
        jobs=100,
        seconds=100 / per_second,
        per_second=per_second,
        cpu_ms_per_job={"worker": each, "temporal": each, "load": 1.0},
        lateness=spread(late),
        memory=Memory(resident=held, disk={"temporal": 2**20, "postgres": 1}) if held else None,
        notes=notes,
    )


def run_of(*measurements: Measurement, rounds: int = 1) -> Run:
    return Run(
        at="2026-01-02T03:04:05+00:00",
        machine={"processors": "2 x Abacus"},
        versions={"temporal CLI": "1.5.1", "postgres": "18.6"},
        quick=False,
        rounds=rounds,
        measurements=list(measurements),
    )
