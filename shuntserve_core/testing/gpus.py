"""What every GPU spec must satisfy; most of it catches figures in the wrong unit."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Unusable
from shuntserve_core.registered import value_trouble
from shuntserve_core.types import DTYPE_BYTES, GpuSpec


class GpuContract:
    """Subclass this, name the class `Test...`, and return your GPUs from `gpus`."""

    def gpus(self) -> Iterable[GpuSpec | Unusable]:
        """The GPUs to check, as your plugin registers them."""
        raise NotImplementedError

    def test_every_one_can_be_used(self) -> None:
        """Nothing is left out, and the registry takes each."""
        troubles = {
            gpu.name: gpu.reason if isinstance(gpu, Unusable) else value_trouble("gpu", gpu)
            for gpu in self.gpus()
        }
        assert not any(troubles.values()), troubles

    def _usable(self) -> list[GpuSpec]:
        return [gpu for gpu in self.gpus() if isinstance(gpu, GpuSpec)]

    def test_there_are_gpus_and_each_has_a_name_of_its_own(self) -> None:
        """Two GPUs of one name would hide each other."""
        names = [gpu.name for gpu in self._usable()]
        assert names
        assert len(names) == len(set(names)), names
        assert all(name.strip() == name != "" for name in names), names

    def test_memory_is_in_bytes(self) -> None:
        """Between 1 GB and 10 TB."""
        for gpu in self._usable():
            assert 1e9 <= gpu.memory_bytes <= 1e13, gpu.name

    def test_rates_are_in_flops_by_known_types(self) -> None:
        """At least one rate, each between 1 GFLOP/s and 1 EFLOP/s, by names of `DTYPE_BYTES`."""
        for gpu in self._usable():
            assert gpu.flops, gpu.name
            assert gpu.flops.keys() <= DTYPE_BYTES.keys(), gpu.name
            assert all(1e9 <= rate <= 1e18 for rate in gpu.flops.values()), gpu.name

    def test_memory_bandwidth_is_in_bytes_per_second(self) -> None:
        """Between 1 GB/s and 100 TB/s."""
        for gpu in self._usable():
            assert 1e9 <= gpu.memory_bandwidth <= 1e14, gpu.name

    def test_efficiency_factors_are_shares(self) -> None:
        """Sustained figures times a share: more than 1.5 means that a figure is off."""
        for gpu in self._usable():
            factors = gpu.efficiency
            shares = (factors.gemm, factors.attention, factors.bandwidth, factors.kv_bandwidth)
            assert all(0 < share <= 1.5 for share in shares), gpu.name
            assert factors.layer_overhead < 0.1, gpu.name

    def test_figures_have_a_source(self) -> None:
        """Somebody will want to know where they are from."""
        for gpu in self._usable():
            assert gpu.source, gpu.name
