//! One key: its kind, its owned and borrowed forms, and the trait of key arguments.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use crate::error::{Error, Result};

/// Longest key in bytes (64 KiB).
pub const MAX_KEY_LEN_BYTES: usize = 1 << 16;

/// The kind of a store's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Strings (Arrow `Utf8`).
    Str,
    /// Unsigned 64-bit integers (Arrow `UInt64`).
    U64,
    /// Byte strings (Arrow `Binary`).
    Bytes,
}

impl KeyKind {
    /// The name: `"str"`, `"u64"` or `"bytes"`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Str => "str",
            Self::U64 => "u64",
            Self::Bytes => "bytes",
        }
    }

    /// The code in seals.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Str => 1,
            Self::U64 => 2,
            Self::Bytes => 3,
        }
    }

    /// The key with these canonical bytes, or `None` if no key of this kind has them.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<Key> {
        match self {
            Self::Str => std::str::from_utf8(bytes).ok().map(|text| Key::Str(text.to_owned())),
            Self::U64 => bytes.try_into().ok().map(|bytes| Key::U64(u64::from_le_bytes(bytes))),
            Self::Bytes => Some(Key::Bytes(bytes.to_vec())),
        }
    }

    /// Fails with [`Error::KeyKind`] unless `found` is this kind.
    pub(crate) fn expect(self, found: Self) -> Result<()> {
        if self == found { Ok(()) } else { Err(Error::KeyKind { expected: self.name(), found: found.name() }) }
    }
}

/// An owned key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A string.
    Str(String),
    /// An integer.
    U64(u64),
    /// A byte string.
    Bytes(Vec<u8>),
}

impl Key {
    /// A borrowed view.
    #[must_use]
    pub fn as_ref(&self) -> KeyRef<'_> {
        match self {
            Self::Str(text) => KeyRef::Str(text),
            Self::U64(number) => KeyRef::U64(*number),
            Self::Bytes(bytes) => KeyRef::Bytes(bytes),
        }
    }

    /// The integer, if the key is one.
    #[must_use]
    pub const fn as_u64(&self) -> Option<u64> {
        match self {
            Self::U64(number) => Some(*number),
            _ => None,
        }
    }

    /// The string, if the key is one.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes, if the key is a byte string.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

macro_rules! key_conversions {
    ($($type:ty => $variant:ident),* $(,)?) => {
        $(
            impl From<$type> for Key { fn from(key: $type) -> Self { Self::$variant(key) } }
            /// A key of another kind is returned as the error.
            impl TryFrom<Key> for $type {
                type Error = Key;

                fn try_from(key: Key) -> std::result::Result<Self, Key> {
                    match key {
                        Key::$variant(key) => Ok(key),
                        other => Err(other),
                    }
                }
            }
        )*
    };
}
key_conversions!(String => Str, u64 => U64, Vec<u8> => Bytes);

impl From<&str> for Key {
    fn from(key: &str) -> Self {
        Self::Str(key.to_owned())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(text) => f.write_str(text),
            Self::U64(number) => write!(f, "{number}"),
            Self::Bytes(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// Strings as text, integers as numbers, bytes in hexadecimal.
impl serde::Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::U64(number) => serializer.serialize_u64(*number),
            Self::Str(_) | Self::Bytes(_) => serializer.collect_str(self),
        }
    }
}

/// A borrowed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyRef<'a> {
    /// A string.
    Str(&'a str),
    /// An integer.
    U64(u64),
    /// A byte string.
    Bytes(&'a [u8]),
}

impl KeyRef<'_> {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> KeyKind {
        match self {
            Self::Str(_) => KeyKind::Str,
            Self::U64(_) => KeyKind::U64,
            Self::Bytes(_) => KeyKind::Bytes,
        }
    }

    /// An owned key.
    #[must_use]
    pub fn to_key(&self) -> Key {
        match *self {
            Self::Str(text) => Key::Str(text.to_owned()),
            Self::U64(number) => Key::U64(number),
            Self::Bytes(bytes) => Key::Bytes(bytes.to_vec()),
        }
    }

    /// The key, or its beginning, for messages.
    pub(crate) fn shortened(&self) -> String {
        const SHOWN: usize = 40;
        match self {
            Self::Str(text) => match text.char_indices().nth(SHOWN) {
                Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
                None => format!("{text:?}"),
            },
            Self::U64(number) => number.to_string(),
            Self::Bytes(bytes) => match bytes.get(..SHOWN / 2) {
                Some(start) if start.len() < bytes.len() => format!("{}…", Key::Bytes(start.to_vec())),
                _ => self.to_key().to_string(),
            },
        }
    }

    /// Calls `f` with the canonical bytes.
    #[inline]
    pub(crate) fn with_bytes<T>(&self, f: impl FnOnce(&[u8]) -> T) -> T {
        match self {
            Self::Str(text) => f(text.as_bytes()),
            Self::U64(number) => f(&number.to_le_bytes()),
            Self::Bytes(bytes) => f(bytes),
        }
    }
}

/// A key argument: a string, an integer or a byte string, owned or borrowed.
///
/// Integers are keys of kind [`KeyKind::U64`], whatever their type. A negative one is refused.
pub trait AsKey {
    /// The key. O(1), nothing is copied.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative integer.
    fn as_key(&self) -> Result<KeyRef<'_>>;
}

impl<T: AsKey + ?Sized> AsKey for &T {
    fn as_key(&self) -> Result<KeyRef<'_>> {
        (**self).as_key()
    }
}

macro_rules! as_key {
    ($(|$key:ident: $type:ty| $as:expr),* $(,)?) => {
        $(impl AsKey for $type { fn as_key(&self) -> Result<KeyRef<'_>> { let $key = self; $as } })*
    };
}
as_key! {
    |key: str| Ok(KeyRef::Str(key)),
    |key: String| Ok(KeyRef::Str(key)),
    |key: Box<str>| Ok(KeyRef::Str(key)),
    |key: Arc<str>| Ok(KeyRef::Str(key)),
    |key: Rc<str>| Ok(KeyRef::Str(key)),
    |key: Cow<'_, str>| Ok(KeyRef::Str(key)),
    |key: [u8]| Ok(KeyRef::Bytes(key)),
    |key: Vec<u8>| Ok(KeyRef::Bytes(key)),
    |key: Key| Ok(key.as_ref()),
    |key: KeyRef<'_>| Ok(*key),
    |key: u64| Ok(KeyRef::U64(*key)),
    |key: u32| Ok(KeyRef::U64((*key).into())),
    |key: usize| Ok(KeyRef::U64(*key as u64)),
    |key: i64| natural(*key),
    |key: i32| natural((*key).into()),
}

impl<const N: usize> AsKey for [u8; N] {
    fn as_key(&self) -> Result<KeyRef<'_>> {
        Ok(KeyRef::Bytes(self))
    }
}

fn natural(key: i64) -> Result<KeyRef<'static>> {
    match u64::try_from(key) {
        Ok(key) => Ok(KeyRef::U64(key)),
        Err(_) => Err(Error::invalid(format!("the key {key}: {NEGATIVE}"))),
    }
}

pub(super) const NEGATIVE: &str =
    "an integer key cannot be negative: add an offset to all of them, or use them as strings";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_of_any_type() {
        fn of(key: impl AsKey) -> Key {
            key.as_key().unwrap().to_key()
        }
        for number in [of(7), of(7_u64), of(7_i64), of(7_usize), of(7_u32), of(Key::U64(7)), of(KeyRef::U64(7))] {
            assert_eq!(number.as_u64(), Some(7));
        }
        for text in [of("a"), of(String::from("a")), of("a"), of(Arc::<str>::from("a")), of(Cow::from("a"))] {
            assert_eq!(text.as_str(), Some("a"));
        }
        for bytes in [of([1_u8, 2]), of(vec![1_u8, 2]), of(&[1_u8, 2][..])] {
            assert_eq!(Vec::try_from(bytes), Ok(vec![1, 2]));
        }
        assert_eq!(u64::try_from(Key::from("a")), Err(Key::from("a")));
    }
}
