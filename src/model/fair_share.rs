//! Which sessions an agent serves when more are wanted than it can: whoever has the most loses its newest to whoever has
//! fewer, so that all principals end up with equal shares, and one alone may have everything.

use std::collections::HashMap;

pub struct FairShare<S> {
    limit: usize,
    /// In the order of their beginning.
    served: Vec<ServedSession<S>>,
}

pub struct ServedSession<S> {
    pub id: String,
    /// Whose session it is, as the hub says.
    pub principal: String,
    /// What ends it.
    pub end: S,
}

impl<S> FairShare<S> {
    pub fn new(limit: usize) -> Self {
        Self { limit, served: Vec::new() }
    }

    /// Adds a session, if there is room for it, or if another principal has more: then the caller must end what comes back.
    /// An error means that it has no place.
    pub fn admit(&mut self, new: ServedSession<S>) -> Result<Option<S>, ()> {
        let mut ended = None;
        if self.served.len() >= self.limit {
            let mut counts = HashMap::<&str, usize>::new();
            for one in &self.served {
                *counts.entry(&one.principal).or_default() += 1;
            }
            let own = counts.get(new.principal.as_str()).copied().unwrap_or_default();
            let (most, count) = counts.into_iter().max_by_key(|(_, count)| *count).ok_or(())?;
            let newest = self.served.iter().rposition(|one| one.principal == most);
            let newest = newest.filter(|_| count > own + 1).ok_or(())?;
            ended = Some(self.served.remove(newest).end);
        }
        self.served.push(new);
        Ok(ended)
    }

    pub fn remove(&mut self, id: &str) {
        self.served.retain(|one| one.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admit(shares: &mut FairShare<u8>, principal: &str, end: u8) -> Result<Option<u8>, ()> {
        shares.admit(ServedSession { id: end.to_string(), principal: principal.into(), end })
    }

    fn full_of_a() -> FairShare<u8> {
        let mut shares = FairShare::new(4);
        assert!((1..=4).all(|end| admit(&mut shares, "a", end) == Ok(None)));
        shares
    }

    #[test]
    fn one_alone_may_have_everything_and_no_more() {
        let mut shares = full_of_a();
        assert_eq!(admit(&mut shares, "a", 5), Err(()));
        shares.remove("2");
        assert_eq!(admit(&mut shares, "a", 5), Ok(None));
    }

    #[test]
    fn others_take_the_newest_of_the_largest_share_until_all_are_equal() {
        let mut shares = full_of_a();
        assert_eq!(admit(&mut shares, "b", 11), Ok(Some(4)));
        assert_eq!(admit(&mut shares, "b", 12), Ok(Some(3)));
        assert_eq!(admit(&mut shares, "b", 13), Err(()));
        assert_eq!(admit(&mut shares, "a", 5), Err(()));
        assert!(admit(&mut shares, "c", 21).is_ok_and(|ended| ended.is_some()));
        assert!(admit(&mut shares, "d", 31).is_ok_and(|ended| ended.is_some()));
        assert_eq!(admit(&mut shares, "e", 41), Err(()));
    }

    #[test]
    fn without_any_room_nobody_is_admitted() {
        assert_eq!(admit(&mut FairShare::new(0), "a", 1), Err(()));
    }
}
