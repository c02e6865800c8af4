"""How many tokens a view becomes, by connector; pure, so that planners need no tensor."""

from dataclasses import dataclass

from infinity_mm.errors import explain


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectorShape:
    """What a connector asks of a view's patch grid and gives for it."""

    merge: int
    """Sides of views are multiples of this, in patches; a square of `merge` x `merge` patches is one token."""
    queries: int | None = None
    """Tokens of every view, whatever its grid; None: one token a square."""

    def num_tokens(self, rows: int, columns: int) -> int:
        """Tokens of one view of `rows` x `columns` patches."""
        return rows * columns // self.merge**2 if self.queries is None else self.queries


SHAPES = {
    "mlp": ConnectorShape(merge=1),
    "pixel_unshuffle_mlp": ConnectorShape(merge=2),
    "region_resampler": ConnectorShape(merge=1, queries=144),
    "perceiver": ConnectorShape(merge=1, queries=64),
}
"""Every connector with the shape it has where the configuration does not say otherwise."""


def connector_shape(name: str, *, merge: int | None = None, queries: int | None = None) -> ConnectorShape:
    """The shape of a connector; None takes its own value.

    Raises UserError for an unknown name and for a value that the connector has no use for.
    """
    where = "connector (model configuration)"
    if name not in SHAPES:
        raise explain(
            what=f"there is no connector {name!r}", where=where, fix=f"use one of {', '.join(SHAPES)}"
        )
    own = SHAPES[name]
    if merge not in (None, 1) and own.merge == 1:
        raise explain(
            what=f"merge={merge}, but the connector {name} merges no patches",
            where=where,
            fix="set merge: 1, or connector: pixel_unshuffle_mlp",
        )
    if queries is not None and own.queries is None:
        raise explain(
            what=f"connector_queries={queries}, but the connector {name} has no queries",
            where=where,
            fix="remove connector_queries, or set connector: region_resampler or perceiver",
        )
    return ConnectorShape(merge=merge or own.merge, queries=queries or own.queries)
