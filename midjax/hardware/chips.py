# SPDX-License-Identifier: Apache-2.0
"""What one TPU chip can do, by its maker's tables.

Sources: [docs] cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture"; [book] "How to
Scale Your Model", jax-ml.github.io/scaling-book, chapter 2, whose link rates are what transfers
reach, 10 % under [docs]; [compiler] clock and VMEM with which libtpu's cost model counts cycles.
"""

import dataclasses

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One generation of TPU; rates are of one chip unless said otherwise.

    Attributes:
      name: "v4", "v5e", "v5p" or "v6e".
      clock_hz: of the TensorCore.
      bf16_flops_per_second: peak of its matrix units; one multiply and one add are two.
      hbm_bytes: its memory as the tables have it.
      usable_hbm_bytes: what the compiler lets a program use, as it says when one does not fit.
      hbm_bytes_per_second: peak.
      link_bytes_per_second: one link to a neighbour, one direction. A chip has two links for each
        dimension of its torus.
      host_bytes_per_second: PCIe between the chip and its host, one direction.
      dcn_bytes_per_second: network of one host of `chips_per_host` chips, one direction.
      torus_dims: dimensions of a slice, 2 or 3.
      chips_per_host: chips of one virtual machine of a slice with several.
      cores_per_chip_in_name: what a slice's name counts: 2 where `v5p-128` is 64 chips, else 1.
      mxu: rows and columns of a matrix unit.
    """

    name: str
    clock_hz: float
    bf16_flops_per_second: float
    hbm_bytes: int
    usable_hbm_bytes: int
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    host_bytes_per_second: float
    dcn_bytes_per_second: float
    torus_dims: int
    chips_per_host: int
    cores_per_chip_in_name: int
    mxu: int


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            clock_hz=1.05e9,  # [docs]: 275 TFLOP/s = 2 cores x 4 MXU x 128^2 x 2 x 1.05 GHz
            bf16_flops_per_second=275e12,  # [docs]
            hbm_bytes=32 * _GIB,  # [docs]: 32 GiB
            usable_hbm_bytes=round(30.5 * _GIB),  # [compiler]
            hbm_bytes_per_second=1.228e12,  # [book]; [docs] rounds to 1,200 GB/s
            link_bytes_per_second=45e9,  # [book]
            host_bytes_per_second=16e9,  # [book]: PCIe 3.0 x16
            dcn_bytes_per_second=25e9,  # [book]: 6.25 GB/s a chip, said of v5p
            torus_dims=3,
            chips_per_host=4,
            cores_per_chip_in_name=2,
            mxu=128,
        ),
        Chip(
            name="v5e",
            clock_hz=1.5e9,  # [docs]: 197 TFLOP/s = 4 MXU x 128^2 x 2 x 1.5 GHz
            bf16_flops_per_second=197e12,  # [docs]
            hbm_bytes=16 * _GIB,  # [docs]: 16 GB
            usable_hbm_bytes=round(15.75 * _GIB),  # [compiler]
            hbm_bytes_per_second=0.819e12,  # [docs]
            link_bytes_per_second=45e9,  # [book]; [docs]: 400 GB/s over 4 links, both directions
            host_bytes_per_second=16e9,  # [book]
            dcn_bytes_per_second=12.5e9,  # [docs]: 6.4 Tbit/s per pod of 64 hosts
            torus_dims=2,
            chips_per_host=4,
            cores_per_chip_in_name=1,
            mxu=128,
        ),
        Chip(
            name="v5p",
            clock_hz=1.75e9,  # [docs]: 459 TFLOP/s = 2 cores x 4 MXU x 128^2 x 2 x 1.75 GHz
            bf16_flops_per_second=459e12,  # [docs]
            hbm_bytes=95 * _GIB,  # [docs]: 95 GB
            usable_hbm_bytes=round(95.74 * _GIB),  # [compiler]
            hbm_bytes_per_second=2.765e12,  # [docs]
            link_bytes_per_second=90e9,  # [book]; [docs]: 1,200 GB/s over 6 links, both directions
            host_bytes_per_second=16e9,  # [book]
            dcn_bytes_per_second=25e9,  # [book]: 6.25 GB/s per chip; [docs]: 200 Gbit/s per host
            torus_dims=3,
            chips_per_host=4,
            cores_per_chip_in_name=2,
            mxu=128,
        ),
        Chip(
            name="v6e",
            clock_hz=1.75e9,  # [compiler]; [docs]: 918 TFLOP/s = 4 x 256^2 x 2 x 1.75 GHz
            bf16_flops_per_second=918e12,  # [docs]
            hbm_bytes=32 * _GIB,  # [docs]: 32 GB
            usable_hbm_bytes=round(31.25 * _GIB),  # [compiler]
            hbm_bytes_per_second=1.638e12,  # [docs]
            link_bytes_per_second=90e9,  # [book]; [docs]: 800 GB/s over 4 links, both directions
            host_bytes_per_second=16e9,  # [book]: the same is assumed; PCIe 5.0 could do 64
            dcn_bytes_per_second=50e9,  # [docs]: 25.6 Tbit/s per pod of 64 hosts
            torus_dims=2,
            chips_per_host=4,
            cores_per_chip_in_name=1,
            mxu=256,
        ),
    )
}
# `jax.Device.device_kind` -> name. From v4 on a chip is one device.
OF_KIND = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
