//! The keys of one call.

use std::sync::Arc;

use super::one::{Key, KeyKind, KeyRef, MAX_KEY_LEN_BYTES, NEGATIVE};
use crate::error::{Error, ItemError, Result};

/// The keys of one call: any slice of strings, integers, byte strings, [`Key`]s or [`KeyRef`]s. Nothing is copied.
///
/// Integers are keys of kind [`KeyKind::U64`], whatever their type. A call with a negative one fails.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Keys<'a> {
    /// Integers.
    U64(&'a [u64]),
    /// Signed integers, as ids of datasets often are.
    I64(&'a [i64]),
    /// Signed integers of 32 bits: what integer literals are.
    I32(&'a [i32]),
    /// Borrowed strings.
    Strs(&'a [&'a str]),
    /// Owned strings.
    Strings(&'a [String]),
    /// Shared strings.
    Arcs(&'a [Arc<str>]),
    /// Borrowed byte strings.
    Slices(&'a [&'a [u8]]),
    /// Owned byte strings.
    Vecs(&'a [Vec<u8>]),
    /// Byte strings of one length, such as digests, one after the other.
    Arrays {
        /// How many.
        len: usize,
        /// All of them.
        bytes: &'a [u8],
    },
    /// Owned keys.
    Keys(&'a [Key]),
    /// Borrowed keys.
    KeyPtrs(&'a [&'a Key]),
    /// Borrowed keys of any kind.
    Refs(&'a [KeyRef<'a>]),
}

impl<'a> Keys<'a> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U64(keys) => keys.len(),
            Self::I64(keys) => keys.len(),
            Self::I32(keys) => keys.len(),
            Self::Strs(keys) => keys.len(),
            Self::Strings(keys) => keys.len(),
            Self::Arcs(keys) => keys.len(),
            Self::Slices(keys) => keys.len(),
            Self::Vecs(keys) => keys.len(),
            Self::Arrays { len, .. } => *len,
            Self::Keys(keys) => keys.len(),
            Self::KeyPtrs(keys) => keys.len(),
            Self::Refs(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The key at `position`, or `None` past the end. A negative integer returns its bits; every call fails on it.
    #[must_use]
    pub fn get(&self, position: usize) -> Option<KeyRef<'a>> {
        Some(match *self {
            Self::U64(keys) => KeyRef::U64(*keys.get(position)?),
            Self::I64(keys) => KeyRef::U64(keys.get(position)?.cast_unsigned()),
            Self::I32(keys) => KeyRef::U64(i64::from(*keys.get(position)?).cast_unsigned()),
            Self::Strs(keys) => KeyRef::Str(keys.get(position)?),
            Self::Strings(keys) => KeyRef::Str(keys.get(position)?),
            Self::Arcs(keys) => KeyRef::Str(keys.get(position)?),
            Self::Slices(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Vecs(keys) => KeyRef::Bytes(keys.get(position)?),
            Self::Arrays { len, bytes } => {
                let len_bytes = bytes.len().checked_div(len)?;
                KeyRef::Bytes(if position < len {
                    bytes.get(position * len_bytes..(position + 1) * len_bytes)?
                } else {
                    return None;
                })
            }
            Self::Keys(keys) => keys.get(position)?.as_ref(),
            Self::KeyPtrs(keys) => keys.get(position)?.as_ref(),
            Self::Refs(keys) => *keys.get(position)?,
        })
    }

    /// The integers of keys that were checked, if all keys are integers.
    pub(crate) fn integers(self) -> Option<&'a [u64]> {
        match self {
            Self::U64(keys) => Some(keys),
            // None is negative: the keys were checked.
            Self::I64(keys) => Some(bytemuck::cast_slice(keys)),
            _ => None,
        }
    }

    /// All of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = KeyRef<'a>> {
        // `get` is `Some` below `len`; the fallback only satisfies the type.
        (0..self.len()).map(move |position| self.get(position).unwrap_or(KeyRef::U64(0)))
    }

    /// `error`, as the error of the item at `position`.
    #[cold]
    pub(crate) fn item_error(self, position: usize, error: Error) -> Error {
        let key = match self {
            Self::I64(keys) => keys.get(position).map(i64::to_string),
            Self::I32(keys) => keys.get(position).map(i32::to_string),
            _ => self.get(position).map(|key| key.shortened()),
        };
        Error::Item(Box::new(ItemError { position, key: key.unwrap_or_default(), error }))
    }

    /// Checks that all keys are of one kind, and of that of the store if it has keys; returns the kind, or `None` for
    /// an empty call.
    ///
    /// # Errors
    /// [`Error::Item`], with [`Error::KeyKind`] if a key is of another kind, [`Error::TooLarge`] if it is longer than
    /// [`MAX_KEY_LEN_BYTES`], [`Error::Invalid`] if it is negative.
    pub(crate) fn check(self, store: Option<KeyKind>) -> Result<Option<KeyKind>> {
        if let Self::Arrays { len, bytes } = self
            && bytes.len().checked_rem(len).unwrap_or(bytes.len()) != 0
        {
            return Err(Error::invalid(format!("{} bytes are no {len} keys of one length", bytes.len())));
        }
        let Some(first) = self.get(0) else { return Ok(None) };
        let kind = store.unwrap_or(first.kind());
        kind.expect(first.kind()).map_err(|error| self.item_error(0, error))?;
        let negative = match self {
            Self::U64(_) => return Ok(Some(kind)),
            Self::I64(keys) => keys.iter().position(|&key| key < 0),
            Self::I32(keys) => keys.iter().position(|&key| key < 0),
            _ => None,
        };
        if let Some(position) = negative {
            return Err(self.item_error(position, Error::invalid(NEGATIVE)));
        }
        let check = |key: KeyRef<'_>| {
            kind.expect(key.kind())?;
            let len_bytes = key.with_bytes(<[u8]>::len);
            if len_bytes <= MAX_KEY_LEN_BYTES {
                return Ok(());
            }
            Err(Error::TooLarge {
                what: "the key's length in bytes (hash it, and use the hash as the key)".into(),
                found: len_bytes as u64,
                limit: MAX_KEY_LEN_BYTES as u64,
            })
        };
        for (position, key) in self.iter().enumerate() {
            check(key).map_err(|error| self.item_error(position, error))?;
        }
        Ok(Some(kind))
    }
}

macro_rules! keys_from {
    ($($element:ty => |$keys:ident| $as:expr),* $(,)?) => {
        $(
            impl<'a> From<&'a [$element]> for Keys<'a> { fn from($keys: &'a [$element]) -> Self { $as } }
            impl<'a> From<&'a Vec<$element>> for Keys<'a> {
                fn from(keys: &'a Vec<$element>) -> Self { keys.as_slice().into() }
            }
            impl<'a, const N: usize> From<&'a [$element; N]> for Keys<'a> {
                fn from(keys: &'a [$element; N]) -> Self { keys.as_slice().into() }
            }
        )*
    };
}
keys_from! {
    u64 => |keys| Self::U64(keys),
    i64 => |keys| Self::I64(keys),
    i32 => |keys| Self::I32(keys),
    &'a str => |keys| Self::Strs(keys),
    String => |keys| Self::Strings(keys),
    Arc<str> => |keys| Self::Arcs(keys),
    &'a [u8] => |keys| Self::Slices(keys),
    Vec<u8> => |keys| Self::Vecs(keys),
    Key => |keys| Self::Keys(keys),
    &'a Key => |keys| Self::KeyPtrs(keys),
    KeyRef<'a> => |keys| Self::Refs(keys),
}
#[cfg(target_pointer_width = "64")]
keys_from! {
    usize => |keys| Self::U64(bytemuck::cast_slice(keys)),
}

impl<'a, const N: usize> From<&'a [[u8; N]]> for Keys<'a> {
    fn from(keys: &'a [[u8; N]]) -> Self {
        Self::Arrays { len: keys.len(), bytes: keys.as_flattened() }
    }
}

impl<'a, const N: usize> From<&'a Vec<[u8; N]>> for Keys<'a> {
    fn from(keys: &'a Vec<[u8; N]>) -> Self {
        keys.as_slice().into()
    }
}

impl<'a, const N: usize, const M: usize> From<&'a [[u8; N]; M]> for Keys<'a> {
    fn from(keys: &'a [[u8; N]; M]) -> Self {
        keys.as_slice().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::one::AsKey;

    #[test]
    fn kinds_may_not_mix() {
        let mixed = [Key::U64(1), Key::Str("1".into())];
        assert!(matches!(Keys::from(&mixed).check(None).unwrap_err().cause(), Error::KeyKind { .. }));
        assert_eq!(Keys::from(&["a", "b"]).check(None).unwrap(), Some(KeyKind::Str));
        assert_eq!(Keys::from(&Vec::<Key>::new()).check(None).unwrap(), None);
    }

    #[test]
    fn long_keys_are_refused() {
        let long = [vec![0_u8; MAX_KEY_LEN_BYTES + 1]];
        let refused = Keys::from(&[vec![1], long[0].clone()]).check(None).unwrap_err();
        assert!(matches!(refused.cause(), Error::TooLarge { .. }));
        let said = refused.to_string();
        assert!(
            said.starts_with("key 0000") && said.contains("… at position 1: ") && said.contains("hash it"),
            "{said}"
        );
    }

    #[test]
    fn every_slice_of_keys() {
        fn of<'a>(keys: impl Into<Keys<'a>>) -> Vec<KeyRef<'a>> {
            let keys = keys.into();
            assert_eq!(keys.get(keys.len()), None);
            keys.check(None).unwrap();
            keys.iter().collect()
        }
        let numbers = [KeyRef::U64(7), KeyRef::U64(8)];
        assert_eq!(of(&[7_u64, 8]), numbers);
        assert_eq!(of(&[7, 8]), numbers);
        assert_eq!(of(&vec![7_i64, 8]), numbers);
        assert_eq!(of(&[7_usize, 8]), numbers);
        assert_eq!(Keys::from(&[7_i64, 8]).integers().unwrap(), [7, 8]);
        let texts = [KeyRef::Str("a"), KeyRef::Str("b")];
        assert_eq!(of(&[Arc::<str>::from("a"), Arc::from("b")]), texts);
        let (a, b) = (Key::from("a"), Key::from("b"));
        assert_eq!(of(&[&a, &b]), texts);
        let digests = [[1_u8, 2, 3], [4, 5, 6]];
        assert_eq!(of(&digests), [KeyRef::Bytes(&[1, 2, 3]), KeyRef::Bytes(&[4, 5, 6])]);
        assert_eq!(of(&digests.to_vec()), of(&digests));
        assert_eq!(of(&[[0_u8; 0]; 2]), [KeyRef::Bytes(&[]), KeyRef::Bytes(&[])]);
    }

    #[test]
    fn negative_integers_are_refused() {
        let said = Keys::from(&[1_i64, -3]).check(None).unwrap_err().to_string();
        assert!(said.starts_with("key -3 at position 1: an integer key cannot be negative"), "{said}");
        assert!(Keys::from(&[-1]).check(None).is_err());
        assert!((-1_i64).as_key().is_err() && (-1).as_key().is_err());
    }
}
