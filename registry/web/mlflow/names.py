"""Names for runs and models that come without one."""

from random import Random
from types import ModuleType

_KINDS = (
    *("amber", "brisk", "calm", "clever", "copper", "dapper", "eager", "frank", "gentle", "glad"),
    *("golden", "hardy", "honest", "jolly", "keen", "lively", "loyal", "mellow", "merry", "neat"),
    *(
        "nimble",
        "patient",
        "plucky",
        "proud",
        "quiet",
        "rapid",
        "silver",
        "steady",
        "sunny",
        "wise",
    ),
)
_BIRDS = (
    *("auk", "bittern", "bunting", "coot", "crane", "curlew", "dipper", "dunlin", "eider", "finch"),
    *("gannet", "grebe", "heron", "hoopoe", "jackdaw", "kestrel", "lapwing", "linnet", "magpie"),
    *("merlin", "osprey", "petrel", "pipit", "plover", "puffin", "robin", "shrike", "siskin"),
    *("teal", "wren"),
)


def random_name(source: "Random | ModuleType") -> str:
    """A name such as `calm-heron-417`. It is no id: two may be the same."""
    return f"{source.choice(_KINDS)}-{source.choice(_BIRDS)}-{source.randrange(1000)}"
