//! The files in a store's folder other than segments and runs. It depends on the storage only, not on an open store.
//!
//! [`identity`] is `store.json`; [`locks`] are one per lane, and one for opening; [`sync_log`] says how much of each
//! active segment is durable; [`quarantine`] keeps files that were moved away, with notes; [`listing`] lists names;
//! [`row_maps`] map the rows of replaced segments to their new places; [`replace`] replaces files atomically;
//! [`usage`] measures all files.

pub(crate) mod history;
pub(crate) mod identity;
pub(crate) mod listing;
pub(crate) mod locks;
pub(crate) mod quarantine;
pub(crate) mod replace;
pub(crate) mod row_maps;
pub(crate) mod sync_log;
pub(crate) mod usage;
