//! The files in a store's folder other than segments and runs. Knows storages, and no open store.
//!
//! [`identity`] is `store.json`; [`locks`] are one per lane, and one for opening; [`sync_log`] says how much of each
//! active segment is durable; [`quarantine`] keeps what was moved away, with notes; [`listing`] lists names;
//! [`row_maps`] say where the rows of replaced segments are; [`replace`] replaces files in one step.

pub(crate) mod identity;
pub(crate) mod listing;
pub(crate) mod locks;
pub(crate) mod quarantine;
pub(crate) mod replace;
pub(crate) mod row_maps;
pub(crate) mod sync_log;
