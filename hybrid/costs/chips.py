"""What the makers publish of a chip: the one table behind MFU, "does it fit" and rooflines.

Sources: the tables of cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e, tpu7x) and NVIDIA's
data sheet of the H100 SXM. They give the interconnect in both directions together; here it is
what a chip can receive, one half. A chip may be several devices of jax (tpu7x: two), each with an
equal share of everything.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """Published peaks.

    Attributes:
      kinds: as `jax.Device.device_kind` names it.
      flops: dense bfloat16 FLOP/s.
      memory: bytes of HBM.  memory_rate: bytes/s from and to it.
      link_rate: bytes/s that it can receive from other chips, all links together.
      devices: of jax, that share it.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    devices: int = 1

    def device(self) -> "Chip":
        """The share of one device."""
        flops, memory = self.flops / self.devices, self.memory / self.devices
        rates = self.memory_rate / self.devices, self.link_rate / self.devices
        return Chip(self.kinds, flops, memory, *rates)


# By the name of a topology ("v5p:4x4x4") before its colon.
CHIPS = {
    "v4": Chip(("TPU v4",), 275e12, 32 * GIB, 1228e9, 300e9),
    "v5e": Chip(("TPU v5 lite",), 197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(("TPU v6 lite",), 918e12, 32 * GIB, 1638e9, 400e9),
    "tpu7x": Chip(("TPU7x",), 2307e12, 192 * GIB, 7380e9, 600e9, devices=2),
    "h100": Chip(("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9),
}
