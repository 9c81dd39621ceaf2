"""What a run is to do, written down before it starts, so that a later one can tell whether it goes on with the same."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trt_vit.engine.bundle import Bundle
    from trt_vit.sources.shard import Shard

FORMAT = 1
SHARD_SIZE = "shard_size"


@dataclass(frozen=True)
class PlannedShard:
    """One shard of a plan.

    Attributes:
        images: How many images it has, or None where only reading tells.
        digest: Changes with its images.
        name: What a person calls it.
    """

    images: int | None
    digest: str
    name: str


@dataclass(frozen=True)
class Plan:
    """What the files of the shards depend on: the images, the bundle, and some settings.

    Attributes:
        shards: The images.
        bundle: A digest of all that is in the bundle.
        settings: Those that change a row, and how the images were cut.
    """

    shards: Sequence[PlannedShard]
    bundle: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, shards: Sequence[Shard], bundle: Bundle, settings: Mapping[str, Any]) -> Self:
        """Write down a run. Every file's size and time are looked up."""
        planned = [PlannedShard(shard.images, shard.digest(), shard.describe()) for shard in shards]
        files = sorted((name, file.sha256) for name, file in bundle.manifest.files.items())
        return cls(planned, hashlib.sha256(repr(files).encode()).hexdigest(), settings)

    @property
    def images(self) -> int | None:
        """How many images there are, or None where only reading tells."""
        return count_images(self.shards)

    def differences(self, earlier: Plan) -> list[str]:
        """Return in words where it differs from an earlier plan; nothing where both give the same rows."""
        found = [
            f"{name} was {earlier.settings.get(name)}, now it is {value}"
            for name, value in self.settings.items()
            if earlier.settings.get(name) != value
        ]
        if self.bundle != earlier.bundle:
            found.append("the bundle was another")
        if self.images != earlier.images:
            found.append(f"there were {_count(earlier.images)} images, now there are {_count(self.images)}")
        if self.settings.get(SHARD_SIZE) == earlier.settings.get(SHARD_SIZE):
            found += self._other_shards(earlier)
        return found

    def _other_shards(self, earlier: Plan) -> list[str]:
        """Return in words which shards differ: of plans that were cut alike, those with other images."""
        pairs = zip(self.shards, earlier.shards, strict=False)
        changed = [before for now, before in pairs if now.digest != before.digest]
        changed += earlier.shards[len(self.shards) :]
        if changed:
            parts = f"{len(changed)} of {len(earlier.shards)} shards"
            return [f"images in {parts} are others or were written since, first among {changed[0].name}"]
        if len(self.shards) > len(earlier.shards):
            return [f"there were {len(earlier.shards)} shards, now there are {len(self.shards)}"]
        return []

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "format": FORMAT,
            "bundle": self.bundle,
            "settings": dict(self.settings),
            "shards": [asdict(shard) for shard in self.shards],
        }

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Return what ``document`` has made.

        Raises:
            ValueError: It is not that, or from another version.
        """
        try:
            if document["format"] != FORMAT:
                raise ValueError("it is of another version of trt_vit")
            shards = [
                PlannedShard(_parse_count(row["images"]), str(row["digest"]), str(row["name"]))
                for row in document["shards"]
            ]
            return cls(shards, str(document["bundle"]), dict(document["settings"]))
        except (KeyError, TypeError) as error:
            raise ValueError("it is not a plan") from error


def count_images(shards: Iterable[Shard | PlannedShard]) -> int | None:
    """Return how many images some shards have, or None where only reading tells."""
    counts = [shard.images for shard in shards]
    return None if None in counts else sum(count or 0 for count in counts)


def _parse_count(images: Any) -> int | None:
    if images is not None and not isinstance(images, int):
        raise TypeError("it is not a number of images")
    return images


def _count(images: int | None) -> str:
    return "an unknown number of" if images is None else str(images)
