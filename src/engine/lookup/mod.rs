//! From keys to rows: [`query`] is what is looked up and found, [`find`] looks it up, in [`stages`] in the runs;
//! [`prefault`] reads in what a batch will touch; [`unread`] knows of rows that damage keeps from being read.

pub(crate) mod find;
pub(crate) mod prefault;
pub(crate) mod query;
pub(crate) mod stages;
pub(crate) mod unread;
