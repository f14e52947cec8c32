"""How much is measured: all of it, on a cluster, or a little of it."""

import msgspec


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done in a run. Times are in seconds, rates in jobs a second."""

    creates: int
    """With one create in flight it is a quarter, with 16 by turns twice as many, and in a batch a half."""
    bursts: tuple[int, ...]
    rates: tuple[float, ...]
    steady_seconds: float
    sustained_seconds: float
    keyed_turns: int
    keyed_creates: int
    """Creates in each turn with keys, and in each without: so many that a turn takes as long as a key is remembered.

    A shorter one has a look-up of its own, which is more than its share.
    """
    observed_turns: int
    observed_seconds: float
    """How long each way of looking inside is measured at a time, six times in a turn."""
    waiting: tuple[int, ...]
    """Levels of waiting jobs, from few to many."""
    batch: int
    """Creates in each of the batches of which the median counts, at each level of waiting jobs."""
    counts: int
    """Counts that are asked for at each level of waiting jobs."""
    burst_among: int
    """Jobs of the burst at each level of waiting jobs, on a cluster."""
    nodes_seconds: float
    """How long each number of nodes gets jobs in a turn; a quarter of it before the first one."""
    nodes_turns: int
    """Turns of each number of nodes in a round."""
    idle_seconds: float
    """How long each number of nodes is watched without a job, before and after each turn."""
    overload_seconds: float


FULL = Size(
    creates=2_000,
    bursts=(1_000, 2_000),
    rates=(5, 15, 30),
    steady_seconds=8,
    sustained_seconds=8,
    keyed_turns=3,
    keyed_creates=1_500,
    observed_turns=4,
    observed_seconds=10,
    waiting=(1_000, 10_000, 50_000),
    batch=400,
    counts=10,
    burst_among=1_000,
    nodes_seconds=48,
    nodes_turns=3,
    idle_seconds=20,
    overload_seconds=120,
)
ON_CLUSTER = msgspec.structs.replace(FULL, bursts=(600, 2_000), waiting=(10_000, 100_000))
QUICK = Size(
    creates=480,
    bursts=(120,),
    rates=(15,),
    steady_seconds=4,
    sustained_seconds=4,
    keyed_turns=1,
    keyed_creates=60,
    observed_turns=1,
    observed_seconds=2,
    waiting=(300, 1_500),
    batch=100,
    counts=2,
    burst_among=120,
    nodes_seconds=8,
    nodes_turns=1,
    idle_seconds=3,
    overload_seconds=3,
)
