//! Runs each target on pseudo-random inputs, and on valid files with a few bytes changed, as a fuzzer would in its
//! first minute.

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        (0..self.next() % most).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn operations() {
    let mut random = Random(1);
    (0..400).for_each(|_| tensorcask_fuzz::operations(&random.bytes(300)));
}

#[test]
fn mutate_store() {
    let mut random = Random(2);
    (0..400).for_each(|_| tensorcask_fuzz::mutate_store(&random.bytes(41)));
}

#[test]
fn open_segment() {
    let mut random = Random(3);
    (0..500).for_each(|_| tensorcask_fuzz::open_segment(&random.bytes(600)));
    // Nearly valid files reach deeper code than random bytes: changed golden files.
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/v1/numbers/segments/0000-0000000001.arrow");
    let good = std::fs::read(golden).unwrap();
    for _ in 0..300 {
        let mut bytes = vec![(random.next() % 2) as u8];
        bytes.extend_from_slice(&good);
        for _ in 0..random.next() % 4 {
            let at = 1 + random.next() as usize % good.len();
            bytes[at] ^= random.next() as u8;
        }
        tensorcask_fuzz::open_segment(&bytes);
    }
}
