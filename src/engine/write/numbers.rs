//! The numbers of segments.

use std::collections::BTreeSet;

use crate::names::SegmentId;

/// Intervals of numbers of a lane, ends included, in order.
type Intervals = Vec<(u64, u64)>;

/// The numbers that a lane's writer may give out.
#[derive(Debug, Default)]
pub(crate) struct FreeNumbers {
    next: u64,
    /// Numbers that files have or had, and those of replaced segments.
    taken: Intervals,
    /// Taken numbers for which there is only a file that is not this store's, and that may disappear again.
    strangers: BTreeSet<u64>,
}

impl FreeNumbers {
    /// Numbers from `next` on, except those `taken`. `strangers` are taken numbers for which there is only a file.
    pub(crate) fn new(next: u64, taken: Intervals, strangers: BTreeSet<u64>) -> Self {
        Self { next, taken, strangers }
    }

    /// The next number, and those of strangers that were skipped to reach it. `None` if numbers are used up.
    pub(crate) fn give_out(&mut self) -> Option<(u64, Vec<u64>)> {
        let mut passed = Vec::new();
        let before = self.taken.partition_point(|(first, _)| *first <= self.next).checked_sub(1);
        if let Some((_, last)) = before.and_then(|before| self.taken.get(before)).filter(|(_, last)| *last >= self.next)
        {
            passed.extend(self.strangers.range(self.next..=*last));
            self.next = last.saturating_add(1);
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        (number < SegmentId::MOST_SEQUENCE).then_some((number, passed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_up_around_those_that_are_taken() {
        let mut numbers = FreeNumbers::new(3, vec![(1, 3), (5, 7)], [2, 6].into());
        assert_eq!(numbers.give_out(), Some((4, vec![])));
        assert_eq!(numbers.give_out(), Some((8, vec![6])), "the file of 6 may go as it came");
        assert_eq!(numbers.give_out(), Some((9, vec![])));
        let mut last = FreeNumbers::new(SegmentId::MOST_SEQUENCE, Vec::new(), BTreeSet::new());
        assert_eq!(last.give_out(), None);
    }
}
