//! Keys: strings, 64-bit integers or byte strings; one kind a store.
//!
//! A key's *canonical bytes* are its UTF-8, its eight little-endian bytes, or itself. They are hashed
//! ([xxh3-64](https://github.com/Cyan4973/xxHash)), compared and checksummed. The hash selects candidate rows; the
//! canonical bytes are compared before a value is returned.

mod hash;
mod many;
mod one;

pub(crate) use self::hash::{HashSeed, KeyHasher};
pub use self::many::Keys;
pub use self::one::{AsKey, Key, KeyKind, KeyRef, MAX_KEY_LEN_BYTES};
