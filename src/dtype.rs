//! Element types, with the names and meaning of [safetensors](https://docs.rs/safetensors).

use std::fmt;

use crate::error::{Error, Result};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $bits:literal;)*) => {
        /// The type of a tensor's elements.
        ///
        /// Names and meaning are those of the safetensors format. Elements are little-endian; the sub-byte types
        /// ([`Dtype::F4`], [`Dtype::F6E2M3`], [`Dtype::F6E3M2`]) are packed, so that a tensor must fill whole bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Dtype {
            $($(#[$doc])* $variant,)*
        }

        impl Dtype {
            /// Every dtype.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),*];

            /// The safetensors name, such as `"F32"` or `"F8_E4M3"`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The dtype of a safetensors name.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// Size of one element in bits.
            #[must_use]
            pub const fn bits(self) -> usize {
                match self { $(Self::$variant => $bits,)* }
            }
        }
    };
}

dtypes! {
    /// Boolean, one byte an element, 0 or 1.
    Bool = "BOOL", 8;
    /// 4-bit float (OCP MXFP4), two a byte.
    F4 = "F4", 4;
    /// 6-bit float (OCP MXFP6, E2M3), packed.
    F6E2M3 = "F6_E2M3", 6;
    /// 6-bit float (OCP MXFP6, E3M2), packed.
    F6E3M2 = "F6_E3M2", 6;
    /// Unsigned byte.
    U8 = "U8", 8;
    /// Signed byte.
    I8 = "I8", 8;
    /// 8-bit float, E5M2.
    F8E5M2 = "F8_E5M2", 8;
    /// 8-bit float, E4M3.
    F8E4M3 = "F8_E4M3", 8;
    /// 8-bit exponent (scale), E8M0.
    F8E8M0 = "F8_E8M0", 8;
    /// 8-bit float, E4M3 FNUZ.
    F8E4M3Fnuz = "F8_E4M3FNUZ", 8;
    /// 8-bit float, E5M2 FNUZ.
    F8E5M2Fnuz = "F8_E5M2FNUZ", 8;
    /// Signed 16-bit integer.
    I16 = "I16", 16;
    /// Unsigned 16-bit integer.
    U16 = "U16", 16;
    /// IEEE half precision.
    F16 = "F16", 16;
    /// Brain float.
    BF16 = "BF16", 16;
    /// Signed 32-bit integer.
    I32 = "I32", 32;
    /// Unsigned 32-bit integer.
    U32 = "U32", 32;
    /// IEEE single precision.
    F32 = "F32", 32;
    /// Complex of two single-precision parts.
    C64 = "C64", 64;
    /// IEEE double precision.
    F64 = "F64", 64;
    /// Signed 64-bit integer.
    I64 = "I64", 64;
    /// Unsigned 64-bit integer.
    U64 = "U64", 64;
}

impl Dtype {
    /// Bytes that a tensor of `shape` takes, or `None` if that overflows or does not fill whole bytes.
    #[must_use]
    pub fn tensor_len_bytes(self, shape: &[usize]) -> Option<usize> {
        // A zero dimension makes the tensor empty, however large the others are.
        if shape.contains(&0) {
            return Some(0);
        }
        let elements = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// Checks that `data` holds valid elements. Every byte is valid for all dtypes except [`Dtype::Bool`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for booleans other than 0 and 1, which programs interpret differently.
    pub(crate) fn check_elements(self, data: &[u8]) -> Result<()> {
        // ORs all bytes together, which is much faster than testing each.
        if self != Self::Bool || data.iter().fold(0, |all, byte| all | byte) <= 1 {
            return Ok(());
        }
        let (position, byte) = data.iter().enumerate().find(|(_, byte)| **byte > 1).unwrap_or((0, &0));
        Err(Error::invalid(format!(
            "byte {position} of a BOOL tensor is {byte}: booleans are stored as 0 or 1; convert them, or put the tensor \
             as U8"
        )))
    }

    /// Bytes of the smallest unit that is stored and shuffled: an element, a part of a complex number, or a byte of
    /// packed elements.
    pub(crate) const fn unit_len_bytes(self) -> usize {
        match self {
            Self::C64 => 4,
            _ if self.bits() < 8 => 1,
            _ => self.bits() / 8,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Dtype {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Dtype {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown dtype {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for &dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F128"), None);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!(Dtype::F32.tensor_len_bytes(&[]), Some(4));
        assert_eq!(Dtype::F32.tensor_len_bytes(&[3, 0, usize::MAX, usize::MAX]), Some(0));
        assert_eq!(Dtype::F32.tensor_len_bytes(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F4.tensor_len_bytes(&[3]), None);
        assert_eq!(Dtype::F6E2M3.tensor_len_bytes(&[4]), Some(3));
    }
}
