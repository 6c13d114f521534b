"""Block-quantised weights back to numbers."""

from openhearth.kernels.dequant.reference import bytes_tensor, dequantize, dequantize_into

__all__ = ["bytes_tensor", "dequantize", "dequantize_into"]
