//! Where the properties cut their input.
#![allow(dead_code)] // The replay cuts everywhere, the fuzzers do not.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuts {
    /// At every byte boundary: the replay of the corpora, and small inputs.
    Every,
    /// At two that the bytes themselves decide: a fuzzer runs so many inputs that all boundaries have their turn.
    Two,
}

impl Cuts {
    pub fn of(self, bytes: &[u8]) -> impl Iterator<Item = usize> {
        let length = bytes.len();
        let sum =
            bytes.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        let (from, step) = match self {
            Self::Every => (0, 1),
            Self::Two => (sum % (length / 2 + 1), length / 2 + 1),
        };
        (from..length).step_by(step)
    }
}
