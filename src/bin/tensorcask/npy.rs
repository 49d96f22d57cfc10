//! `.npy` files: numpy's arrays, through the `npyz` crate.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use npyz::{DType, Endianness, NpyHeader, TypeStr};
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

fn dtype_of(found: &TypeStr) -> Option<Dtype> {
    let native = found.endianness() != Endianness::Big;
    let named = |dtype: &&Dtype| {
        type_name(**dtype).and_then(|name| name.parse::<TypeStr>().ok()).is_some_and(|ours| {
            let unit = |t: &TypeStr| (t.type_char(), t.size_field());
            unit(&ours) == unit(found)
        })
    };
    Dtype::ALL.iter().find(named).copied().filter(|dtype| native || dtype.bits() == 8)
}

/// An open array.
pub(crate) struct Array {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    data: BufReader<File>,
}

impl Array {
    /// Opens the array in `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::io(path, &error);
        let mut data = BufReader::new(File::open(path).map_err(io)?);
        // Behind the header lie the elements, as they are.
        let header = NpyHeader::from_reader(&mut data).map_err(io)?;
        let refuse = |what: String| Err(Failure::input(format!("{}: {what}", path.display())));
        if header.order() != npyz::Order::C {
            return refuse("the array is in Fortran order: save numpy.ascontiguousarray(array)".into());
        }
        let DType::Plain(found) = header.dtype() else {
            return refuse("the array has structured elements: save one field of it".into());
        };
        let Some(dtype) = dtype_of(&found) else {
            return refuse(format!(
                "elements of type {found} are not known: save little-endian booleans, integers or floats"
            ));
        };
        let shape: Option<Vec<usize>> = header.shape().iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let Some(shape) = shape else { return refuse("the array is larger than memory can address".into()) };
        Ok(Self { dtype, shape, data })
    }

    /// The next `len_bytes` of elements.
    pub(crate) fn read(&mut self, path: &Path, len_bytes: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; len_bytes];
        self.data.read_exact(&mut bytes).map_err(|error| Failure::io(path, &error))?;
        Ok(bytes)
    }
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
    // The writer of npyz wants typed elements; ours are bytes of any type.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_are_numpys() {
        for &dtype in Dtype::ALL {
            if let Some(name) = type_name(dtype) {
                assert_eq!(dtype_of(&name.parse().unwrap()), Some(dtype));
            }
        }
        assert_eq!(dtype_of(&">f4".parse().unwrap()), None);
    }
}
