//! From keys to rows.

pub(crate) mod find;
pub(crate) mod prefault;
pub(crate) mod unread;
