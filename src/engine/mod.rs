//! The engine: the only module that joins segments and index.
//!
//! Layers, lowest first; imports go downward, also among files, and `read` and `write` never import each other:
//!
//! | layer | what it is |
//! | --- | --- |
//! | [`lock_order`], [`threads`], [`options`], [`report`] | locks with a rank, threads and forks, plain data |
//! | [`files`] | what lies in the folder beside segments and runs |
//! | [`rows`] | a row, where its bytes are, what they say |
//! | [`state`] | what all users of an open store share, by owner |
//! | [`runs`] | index runs: planned, built, merged, published |
//! | [`lookup`] | from keys to rows |
//! | [`admit`], [`follow`] | rows enter the memtable; what other writers committed is taken in |
//! | [`findings`] | what is known to be wrong |
//! | [`read`], [`write`] | values, copies, scans, checks; the queue, the lane, the compactor |
//! | [`open`], [`repair`] | opening, and mending on close |
//! | [`reader`], [`store`] | the public handles |

pub(crate) mod admit;
pub(crate) mod files;
pub(crate) mod findings;
pub(crate) mod follow;
pub(crate) mod lock_order;
pub(crate) mod lookup;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod read;
pub(crate) mod reader;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod runs;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod threads;
pub(crate) mod write;
