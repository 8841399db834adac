"""The tables of ringexp's own choices. A new choice is a file with its code and an entry here."""

from __future__ import annotations

from ringexp.choices.registry import Registry
from ringexp.choices.specs import (
    FAST,
    HALF,
    KernelSpec,
    LayoutSpec,
    PartitionerSpec,
    ThrottleSpec,
    TransportSpec,
)

KERNELS = Registry(
    "kernel",
    KernelSpec,
    (
        KernelSpec(
            name="reference",
            summary="the specification in float64, slow",
            implementation="ringexp.kernels.oracle",
            aliases=("naive", "math", "eager"),
            dtypes=(*FAST, "float64"),
        ),
        KernelSpec(
            name="sdpa",
            summary="PyTorch's own attention for the device",
            implementation="ringexp.kernels.sdpa",
            aliases=("torch",),
            auto_rank=3,
            alternatives=("reference",),
        ),
        KernelSpec(
            name="cudnn",
            summary="cuDNN's fused attention",
            implementation="ringexp.kernels.cudnn",
            devices=("cuda",),
            dtypes=HALF,
            auto_rank=2,
        ),
        KernelSpec(
            name="hopper",
            summary="our kernel for Hopper GPUs, which merges, waits and sends by itself",
            implementation="ringexp.kernels.hopper_block",
            devices=("cuda",),
            dtypes=HALF,
            auto_rank=1,
            fused=True,
        ),
        KernelSpec(
            name="triton",
            summary="our portable Triton kernel",
            stored_as="triton-portable",  # in older rows "triton" is the kernel for Hopper
            implementation="ringexp.kernels.triton_block",
            needs_probe=("cpu",),
        ),
        KernelSpec(
            name="flash",
            summary="FlashAttention-4",
            implementation="ringexp.kernels.flash",
            aliases=("flash_attention", "flash_attention_2", "fa4"),
            devices=("cuda",),
            dtypes=HALF,
            auto_rank=0,
            package="flash-attn-4",
            install="pip install 'ringexp[flash]'",
        ),
    ),
    group="ringexp.kernels",
    has_auto=True,
)

TRANSPORTS = Registry(
    "transport",
    TransportSpec,
    (
        TransportSpec(
            name="nccl",
            summary="NCCL, one rank per GPU",
            implementation="ringexp.ring.nccl:NcclTransport",
            devices=("cuda",),
            one_rank_per_gpu=True,
            capturable=True,
            backend=("cuda", "nccl"),
            auto_rank=1,
        ),
        TransportSpec(
            name="ipc",
            summary="copies between GPUs of one machine, straight from each shard's owner",
            implementation="ringexp.ring.ipc:IpcTransport",
            aliases=("p2p", "nvlink"),
            devices=("cuda",),
            several_machines=False,
            needs_peer_access=True,
            capturable=True,
            direct=True,
            slots_per_far_shard=2,
            auto_rank=0,
        ),
        TransportSpec(
            name="gloo",
            summary="gloo over TCP, by way of host memory",
            implementation="ringexp.ring.gloo:GlooTransport",
            aliases=("mpi", "tcp", "socket"),
            backend=("cpu", "gloo"),
            own_connections=True,
            auto_rank=2,
        ),
    ),
    group="ringexp.transports",
    has_auto=True,
)

THROTTLES = Registry(
    "hetero.throttle",
    ThrottleSpec,
    (
        ThrottleSpec(
            name="none",
            summary="slows nothing; devices of one name count as equal",
            implementation="ringexp.hetero.unthrottled:Unthrottled",
            slows=False,
            why_fixed="it slows nothing",
            per_process=True,
        ),
        ThrottleSpec(
            name="measured",
            summary="slows nothing; every device is measured by itself",
            implementation="ringexp.hetero.unthrottled:Unthrottled",
            slows=False,
            why_fixed="it slows nothing",
            measures_each_device=True,
        ),
        ThrottleSpec(
            name="mps",
            summary="NVIDIA MPS: each rank gets a part of the SMs",
            implementation="ringexp.hetero.mps:Mps",
            devices=("cuda",),
            why_fixed="a process keeps the MPS percentage it was started with",
            shared_on_node=True,
            program="nvidia-cuda-mps-control",
            install="install the NVIDIA driver's compute utilities",
            auto_rank=0,
        ),
        ThrottleSpec(
            name="green_context",
            summary="CUDA green contexts: streams limited to a part of the SMs",
            implementation="ringexp.hetero.green_context:GreenContexts",
            aliases=("smctrl",),
            devices=("cuda",),
            changes_in_mid_run=True,
            auto_rank=1,
        ),
        ThrottleSpec(
            name="cpu_pacing",
            summary="the rank waits after each stretch of computing",
            implementation="ringexp.hetero.cpu_pacing:CpuPacing",
            aliases=("pacing",),
            devices=("cpu",),
            emulated=True,
            changes_in_mid_run=True,
            per_process=True,
            auto_rank=2,
        ),
        ThrottleSpec(
            name="cpu_quota",
            summary="a control group limits the rank's CPU time",
            implementation="ringexp.hetero.cpu_quota:CpuQuota",
            aliases=("cgroup", "cgroups", "quota"),
            devices=("cpu",),
            changes_in_mid_run=True,
            makes_control_groups=True,
        ),
    ),
    group="ringexp.throttles",
    has_auto=True,
)

PARTITIONERS = Registry(
    "partitioner",
    PartitionerSpec,
    (
        PartitionerSpec(
            name="even",
            summary="the same number of tokens for every rank",
            implementation="ringexp.planning.partitioners:even",
            aliases=("equal", "uniform"),
            is_baseline=True,
        ),
        PartitionerSpec(
            name="uneven",
            summary="in proportion to the profile's percentages",
            implementation="ringexp.planning.partitioners:uneven",
            aliases=("percentage", "proportional"),
            needs_percentages=True,
        ),
        PartitionerSpec(
            name="lut",
            summary="in proportion to measured speed, from a table",
            implementation="ringexp.planning.partitioners:lut",
            aliases=("table",),
            needs_speeds=True,
        ),
        PartitionerSpec(
            name="formula",
            summary="in proportion to measured speed, from a polynomial regression",
            implementation="ringexp.planning.partitioners:formula",
            aliases=("polynomial", "regression"),
            needs_speeds=True,
            needs_curve=True,
        ),
        PartitionerSpec(
            name="balanced",
            summary="equal finishing times by measured costs, within each rank's memory",
            implementation="ringexp.planning.balanced:by_costs",
            aliases=("optimal", "waterfilling"),
            needs_costs=True,
            makes_plan=True,
        ),
        PartitionerSpec(
            name="adaptive",
            summary="balanced, and planned anew between prompts as speeds change",
            implementation="ringexp.planning.balanced:by_costs",
            aliases=("dynamic",),
            needs_costs=True,
            makes_plan=True,
            adapts=True,
        ),
    ),
    group="ringexp.partitioners",
)

LAYOUTS = Registry(
    "layout",
    LayoutSpec,
    (
        LayoutSpec(
            name="zigzag",
            summary="a head piece and a mirrored tail piece per rank",
            implementation="ringexp.planning.layouts:zigzag",
            mirrored=True,
            aliases=("striped", "stripe"),
        ),
        LayoutSpec(
            name="contiguous",
            summary="one piece per rank, in rank order",
            implementation="ringexp.planning.layouts:contiguous",
            aliases=("plain",),
        ),
    ),
)


def baseline_partitioner() -> str:
    """Return the name of the partitioner that speedups are relative to."""
    return next(spec.name for spec in PARTITIONERS if spec.is_baseline)


def measures_each_device(throttle: str) -> bool:
    """Tell whether a throttle, or the word auto, takes every device as it is and measures it by itself."""
    spec = THROTTLES.get(throttle)
    return spec is not None and spec.measures_each_device
