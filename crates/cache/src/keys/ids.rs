//! Ids of samples.

use tensorcask::KeyKind;

use crate::error::{Error, Result, invalid};
use crate::framework::Framework;

/// An id of a sample.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// A string.
    Str(String),
    /// An integer.
    Int(u64),
}

/// The ids of a batch, one per sample, all of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ids {
    /// Strings.
    Str(Vec<String>),
    /// Integers.
    Int(Vec<u64>),
}

impl Ids {
    /// The number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Str(ids) => ids.len(),
            Self::Int(ids) => ids.len(),
        }
    }

    /// Whether there are no ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ids at `positions`.
    pub(crate) fn select(&self, positions: &[usize]) -> Self {
        match self {
            Self::Str(ids) => Self::Str(positions.iter().filter_map(|&at| ids.get(at).cloned()).collect()),
            Self::Int(ids) => Self::Int(positions.iter().filter_map(|&at| ids.get(at).copied()).collect()),
        }
    }
}

/// A type that can be passed as ids: slices and vectors of strings, integers or [`Id`]s, and one-dimensional tensors of
/// any integer dtype.
pub trait IntoIds<F: Framework> {
    /// The ids.
    ///
    /// # Errors
    /// [`Error::Invalid`] for negative integers, mixed kinds, and tensors that are not one-dimensional lists of
    /// integers.
    fn into_ids(self) -> Result<Ids>;
}

impl<F: Framework> IntoIds<F> for Ids {
    fn into_ids(self) -> Result<Ids> {
        Ok(self)
    }
}

impl<F: Framework> IntoIds<F> for &Ids {
    fn into_ids(self) -> Result<Ids> {
        Ok(self.clone())
    }
}

macro_rules! into_ids {
    ($($element:ty => |$ids:ident| $convert:expr),* $(,)?) => {
        $(
            impl<F: Framework> IntoIds<F> for &[$element] { fn into_ids(self) -> Result<Ids> { let $ids = self; $convert } }
            impl<F: Framework> IntoIds<F> for &Vec<$element> {
                fn into_ids(self) -> Result<Ids> { IntoIds::<F>::into_ids(self.as_slice()) }
            }
            impl<F: Framework> IntoIds<F> for Vec<$element> {
                fn into_ids(self) -> Result<Ids> { IntoIds::<F>::into_ids(self.as_slice()) }
            }
            impl<F: Framework, const N: usize> IntoIds<F> for &[$element; N] {
                fn into_ids(self) -> Result<Ids> { IntoIds::<F>::into_ids(self.as_slice()) }
            }
        )*
    };
}
into_ids! {
    &str => |ids| Ok(Ids::Str(ids.iter().map(|id| (*id).to_owned()).collect())),
    String => |ids| Ok(Ids::Str(ids.to_vec())),
    u64 => |ids| Ok(Ids::Int(ids.to_vec())),
    u32 => |ids| Ok(Ids::Int(ids.iter().map(|&id| u64::from(id)).collect())),
    usize => |ids| Ok(Ids::Int(ids.iter().map(|&id| id as u64).collect())),
    i64 => |ids| ids.iter().map(|&id| natural(id)).collect::<Result<_>>().map(Ids::Int),
    i32 => |ids| ids.iter().map(|&id| natural(id)).collect::<Result<_>>().map(Ids::Int),
    Id => |ids| of_one_kind(ids),
}

/// Converts an integer id, which must not be negative.
///
/// # Errors
/// [`Error::Invalid`].
pub fn natural<I: TryInto<u64> + Copy + std::fmt::Display>(id: I) -> Result<u64> {
    id.try_into().map_err(|_| invalid(format!("the id {id} is negative: integer ids count from 0; or pass strings")))
}

fn of_one_kind(ids: &[Id]) -> Result<Ids> {
    let strings = ids.iter().map(|id| if let Id::Str(id) = id { Some(id.clone()) } else { None });
    let integers = ids.iter().map(|id| if let Id::Int(id) = id { Some(*id) } else { None });
    match (strings.collect::<Option<_>>(), integers.collect::<Option<_>>()) {
        (_, Some(ids)) => Ok(Ids::Int(ids)),
        (Some(ids), None) => Ok(Ids::Str(ids)),
        (None, None) => {
            Err(Error::Store(tensorcask::Error::KeyKind { expected: KeyKind::Str.name(), found: KeyKind::U64.name() }))
        }
    }
}
