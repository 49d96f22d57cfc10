//! Writing `.npy` files: numpy's arrays.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use tensorcask::{Dtype, Tensor};

use crate::output::Failure;

/// What numpy calls a dtype, if it has it.
fn type_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::Bool => "|b1",
        Dtype::U8 => "|u1",
        Dtype::I8 => "|i1",
        Dtype::U16 => "<u2",
        Dtype::I16 => "<i2",
        Dtype::U32 => "<u4",
        Dtype::I32 => "<i4",
        Dtype::U64 => "<u8",
        Dtype::I64 => "<i8",
        Dtype::F16 => "<f2",
        Dtype::F32 => "<f4",
        Dtype::F64 => "<f8",
        Dtype::C64 => "<c8",
        _ => return None,
    })
}

/// Writes the header of an array of `rows` times `shape`.
pub(crate) fn write_header(path: &Path, out: &mut impl Write, dtype: Dtype, shape: &[usize]) -> Result<(), Failure> {
    let Some(name) = type_name(dtype) else {
        return Err(Failure::input(format!("numpy has no {dtype}: export to Arrow or safetensors")));
    };
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let mut header = format!("{{'descr': '{name}', 'fortran_order': False, 'shape': ({dims}), }}");
    // Version 1.0: magic, version and length are 10 bytes, and all of it ends on a multiple of 64 with a newline.
    let padding = 63 - (10 + header.len()) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let len =
        u16::try_from(header.len()).map_err(|_| Failure::input("the shape is too long for a .npy header".into()))?;
    let header = [&b"\x93NUMPY\x01\x00"[..], &len.to_le_bytes(), header.as_bytes()].concat();
    out.write_all(&header).map_err(|error| Failure::io(path, &error))
}

/// Writes one tensor as an array.
pub(crate) fn write_one(path: &Path, tensor: &Tensor) -> Result<(), Failure> {
    let io = |error: std::io::Error| Failure::io(path, &error);
    let mut out = BufWriter::new(File::create(path).map_err(io)?);
    write_header(path, &mut out, tensor.dtype(), tensor.shape())?;
    out.write_all(tensor.data()).and_then(|()| out.flush()).map_err(io)
}
