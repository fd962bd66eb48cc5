"""What every instance type must satisfy."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Unusable
from shuntserve_core.registered import RESERVED, value_trouble
from shuntserve_core.types import InstanceType


class InstanceTypeContract:
    """Subclass this, name the class `Test...`, and return your types from `instance_types`."""

    def instance_types(self) -> Iterable[InstanceType | Unusable]:
        """The instance types to check, as your plugin registers them."""
        raise NotImplementedError

    def test_every_one_can_be_used(self) -> None:
        """Nothing is left out, and the registry takes each."""
        troubles = {
            kind.name: kind.reason
            if isinstance(kind, Unusable)
            else value_trouble("instance-type", kind)
            for kind in self.instance_types()
        }
        assert not any(troubles.values()), troubles

    def _usable(self) -> list[InstanceType]:
        return [kind for kind in self.instance_types() if isinstance(kind, InstanceType)]

    def test_there_are_types_and_each_has_a_name_of_its_own(self) -> None:
        """Names must be usable on the command line."""
        names = [kind.name for kind in self._usable()]
        assert names
        assert len(names) == len(set(names)), names
        assert all(name.split() == [name] and not RESERVED & set(name) for name in names), names

    def test_they_are_the_same_each_time(self) -> None:
        """A placement made in one process is carried out in another."""
        assert list(self._usable()) == list(self._usable())

    def test_gpu_counts_and_degrees(self) -> None:
        """A stage may use all GPUs, or one."""
        for kind in self._usable():
            assert 1 <= kind.gpu_count <= 1024, kind.name
            assert {1, kind.gpu_count} <= set(kind.tensor_parallel_degrees), kind.name

    def test_links_are_in_bytes_per_second_and_seconds(self) -> None:
        """Between 10 MB/s and 100 TB/s; a message takes less than a second."""
        for kind in self._usable():
            for link in (kind.link, kind.network):
                assert 1e7 <= link.bandwidth <= 1e14, kind.name
                assert 0 <= link.latency < 1, kind.name

    def test_prices_are_in_dollars_an_hour(self) -> None:
        """Spot is never dearer than on demand."""
        for kind in self._usable():
            assert 0 <= kind.price < 10_000, kind.name
            if kind.spot_price is not None:
                assert 0 <= kind.spot_price <= (kind.price or kind.spot_price), kind.name
