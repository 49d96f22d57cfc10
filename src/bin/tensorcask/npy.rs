//! Reads `.npy` files, numpy's arrays, through the `npyz` crate.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use npyz::{DType, Endianness, NpyHeader, TypeStr};
use tensorcask::Dtype;

use crate::output::Failure;

/// What numpy calls a dtype, if it has it.
pub(crate) fn type_name(dtype: Dtype) -> Option<&'static str> {
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
