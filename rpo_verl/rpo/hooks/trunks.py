"""Members of one group that wait for the whole answer they branch from.

veRL runs the sessions of a group side by side in one process.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class _Trunk:
    done: "asyncio.Future[Any]"
    waiting: int = 0


#: (uid of the prompt, number of the trunk) → the trunk, as long as a member needs it.
_trunks: dict[tuple[str, int], _Trunk] = {}


async def trunk_of(uid: str, number: int, members: int, write: Callable[[], Awaitable[Any]] | None) -> Any:
    """The trunk that the members of a branch share.

    Args:
        uid: of the prompt.
        number: of the trunk within its group.
        members: of the branch, the trunk's own among them; each calls this once.
        write: generates the trunk, for the member that is the trunk; None for the others, which wait for it.

    Returns:
        what `write` returned.

    Raises:
        whatever `write` raised, in every member.
    """
    key = uid, number
    trunk = _trunks.setdefault(key, _Trunk(asyncio.get_running_loop().create_future()))
    trunk.waiting += 1
    if trunk.waiting == members:
        # All are here: each holds the trunk by itself.
        del _trunks[key]
    if write is None:
        return await asyncio.shield(trunk.done)
    try:
        trunk.done.set_result(await write())
    except BaseException as error:
        trunk.done.set_exception(error if isinstance(error, Exception) else RuntimeError(f"the trunk ended: {error!r}"))
        # Not every branch has to ask for it.
        trunk.done.exception()
        raise
    return trunk.done.result()
