//! The ordered keys of a sealed segment, if it has them.

use crate::error::Result;
use crate::index::keys_fst::KeysFst;
use crate::segment::reader::Segment;

/// The ordered keys of a segment, if it has them and they are intact.
pub(crate) fn ordered_keys(segment: &Segment) -> Option<KeysFst> {
    ordered_keys_of(segment).ok().flatten().map(|(_, fst)| fst)
}

/// The ordered keys of a segment and their offset, if it has them.
///
/// # Errors
/// [`crate::Error::Corrupt`] if they are damaged.
pub(crate) fn ordered_keys_of(segment: &Segment) -> Result<Option<(u64, KeysFst)>> {
    let Some((offset, bytes)) = segment.keys_block()? else { return Ok(None) };
    let fst = KeysFst::open(segment.described().to_path_buf(), offset, bytes, segment.rows())?;
    Ok(Some((offset, fst)))
}
