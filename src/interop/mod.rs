//! Conversions from and to other crates' tensors, each behind its feature.

#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "safetensors")]
mod safetensors;
