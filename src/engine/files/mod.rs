//! What lies in a store's folder beside segments and runs.

pub(crate) mod identity;
pub(crate) mod locks;
pub(crate) mod quarantine;
pub(crate) mod replace;
pub(crate) mod sync_log;
