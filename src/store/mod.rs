//! The store: the only room that joins segments, index and hot tier.
//!
//! [`core::Core`] is what readers and writers share: the published view of segments and runs, the delta, and the
//! slots its entries point to. [`lookup`] finds rows in it ([`directory`]: from a run's row to its batch), [`read`]
//! turns them into values, [`copy`] into the caller's buffer; [`cold`] reads in what a batch misses, [`warm`] everything.
//! [`lane`] is the writer's side of the files, [`sealing`] what goes on beside it, [`pending`] the queue before it,
//! [`worker`] the thread between them; [`background`] starts such threads. [`open`] opens, [`recover`] goes on with what
//! a writer left, [`refresh`] follows other writers, [`maintain`] builds runs, and [`merges`] chooses what goes into one.

pub(crate) mod absent;
pub(crate) mod aside;
pub(crate) mod background;
pub(crate) mod cold;
pub(crate) mod copy;
pub(crate) mod core;
pub(crate) mod directory;
pub(crate) mod findings;
pub(crate) mod gather;
pub(crate) mod grouping;
pub(crate) mod head;
pub(crate) mod identity;
pub(crate) mod inventory;
pub(crate) mod keys;
pub(crate) mod known;
pub(crate) mod lane;
pub(crate) mod live;
pub(crate) mod locks;
pub(crate) mod lookup;
pub(crate) mod maintain;
pub(crate) mod marks;
pub(crate) mod merges;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod pending;
pub(crate) mod quarantine;
pub(crate) mod read;
pub(crate) mod reader;
pub(crate) mod recover;
pub(crate) mod refresh;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod salvage;
pub(crate) mod sealing;
pub(crate) mod segments;
pub(crate) mod stats;
pub(crate) mod unread;
pub(crate) mod verify;
pub(crate) mod warm;
pub(crate) mod worker;
pub(crate) mod writer;
