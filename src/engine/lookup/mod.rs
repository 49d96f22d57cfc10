//! From keys to rows. [`query`] defines queries and results; [`find`] looks up keys in the memtable, then in the runs,
//! in [`stages`]; [`prefault`] reads the pages that a batch will touch; [`unread`] handles rows that damage makes
//! unreadable.

pub(crate) mod find;
pub(crate) mod prefault;
pub(crate) mod query;
pub(crate) mod stages;
pub(crate) mod unread;
