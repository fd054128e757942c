//! Pairs the two connections that hold a session's two tickets. A ticket works once, for its session,
//! for fifteen seconds.

use std::collections::HashMap;

use super::time::Time;

pub const TICKET_SECONDS: u64 = 15;
/// Tickets that may be out at once. Each costs about 200 bytes; a caller that asks for more is told to wait.
const TICKETS_LIMIT: usize = 20_000;

#[derive(Debug)]
pub struct Pairing<T> {
    tickets: HashMap<String, Ticket>,
    waiting: HashMap<String, T>,
}

#[derive(Debug)]
struct Ticket {
    session: String,
    /// Of the two.
    is_first: bool,
    made: Time,
    /// Why the second half will not come.
    declined: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum TicketOutcome<T> {
    /// No such ticket: never made, used, or too old. What was offered comes back.
    Unknown(T),
    /// The second half will not come, for this reason.
    Declined(String),
    /// The other half is not here yet.
    First { session: String },
    Second {
        session: String,
        mine: T,
        partner: T,
        /// Whether mine came with the first of the two tickets.
        is_first: bool,
    },
}

impl<T> Default for Pairing<T> {
    fn default() -> Self {
        Self { tickets: HashMap::new(), waiting: HashMap::new() }
    }
}

impl<T> Pairing<T> {
    /// Says false when too many tickets are out.
    pub fn expect(&mut self, session: &str, tickets: [&str; 2], now: Time) -> bool {
        if self.tickets.len() + 2 > TICKETS_LIMIT {
            self.tickets.retain(|_, ticket| !is_old(ticket.made, now));
            if self.tickets.len() + 2 > TICKETS_LIMIT {
                return false;
            }
        }
        for (ticket, is_first) in tickets.into_iter().zip([true, false]) {
            let session = session.to_owned();
            self.tickets.insert(ticket.to_owned(), Ticket { session, is_first, made: now, declined: None });
        }
        true
    }

    pub fn offer(&mut self, ticket: &str, half: T, now: Time) -> TicketOutcome<T> {
        let ticket = self.tickets.remove(ticket).filter(|ticket| !is_old(ticket.made, now));
        let Some(Ticket { session, is_first, declined, .. }) = ticket else {
            return TicketOutcome::Unknown(half);
        };
        if let Some(reason) = declined {
            return TicketOutcome::Declined(reason);
        }
        match self.waiting.remove(&session) {
            Some(partner) => TicketOutcome::Second { session, mine: half, partner, is_first },
            None => {
                self.waiting.insert(session.clone(), half);
                TicketOutcome::First { session }
            }
        }
    }

    /// The second half will not come: the first one hears of it when it comes. The half that waits comes back.
    pub fn decline(&mut self, session: &str, reason: &str) -> Option<T> {
        self.tickets.retain(|_, ticket| ticket.session != session || ticket.is_first);
        let first = self.tickets.values_mut().filter(|ticket| ticket.session == session);
        first.for_each(|ticket| ticket.declined = Some(reason.to_owned()));
        self.waiting.remove(session)
    }

    /// The half that waits stops waiting, and the session's other ticket is void.
    pub fn give_up(&mut self, session: &str) -> Option<T> {
        self.tickets.retain(|_, ticket| ticket.session != session);
        self.waiting.remove(session)
    }
}

fn is_old(made: Time, now: Time) -> bool {
    now.since(made).as_secs() >= TICKET_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time::from_unix(1000 + second)
    }

    #[test]
    fn two_tickets_of_one_session_meet_once() {
        let mut pairing = Pairing::default();
        assert!(pairing.expect("s", ["a", "b"], at(0)));
        assert_eq!(pairing.offer("a", 1, at(1)), TicketOutcome::First { session: "s".into() });
        assert_eq!(pairing.offer("a", 9, at(1)), TicketOutcome::Unknown(9));
        let second = TicketOutcome::Second { session: "s".into(), mine: 2, partner: 1, is_first: false };
        assert_eq!(pairing.offer("b", 2, at(14)), second);
        assert_eq!(pairing.offer("b", 9, at(1)), TicketOutcome::Unknown(9));
    }

    #[test]
    fn a_ticket_is_void_after_fifteen_seconds_and_after_its_half_gave_up() {
        let mut pairing = Pairing::default();
        pairing.expect("s", ["a", "b"], at(0));
        assert_eq!(pairing.offer("a", 1, at(15)), TicketOutcome::Unknown(1));
        pairing.expect("t", ["c", "d"], at(0));
        assert_eq!(pairing.offer("c", 1, at(0)), TicketOutcome::First { session: "t".into() });
        pairing.give_up("t");
        assert_eq!(pairing.offer("d", 2, at(1)), TicketOutcome::Unknown(2));
    }

    #[test]
    fn whoever_comes_to_a_declined_session_hears_why_once() {
        let mut pairing = Pairing::default();
        pairing.expect("s", ["a", "b"], at(0));
        pairing.expect("t", ["c", "d"], at(0));
        assert_eq!(pairing.decline("s", "full"), None);
        assert_eq!(pairing.offer("b", 2, at(1)), TicketOutcome::Unknown(2));
        assert_eq!(pairing.offer("a", 1, at(1)), TicketOutcome::Declined("full".into()));
        assert_eq!(pairing.offer("a", 1, at(1)), TicketOutcome::Unknown(1));
        assert_eq!(pairing.offer("c", 3, at(1)), TicketOutcome::First { session: "t".into() });
        assert_eq!(pairing.decline("t", "full"), Some(3));
        assert_eq!(pairing.offer("d", 4, at(1)), TicketOutcome::Unknown(4));
    }

    #[test]
    fn tickets_of_two_sessions_never_meet() {
        let mut pairing = Pairing::default();
        pairing.expect("s", ["a", "b"], at(0));
        pairing.expect("t", ["c", "d"], at(0));
        assert_eq!(pairing.offer("a", 1, at(1)), TicketOutcome::First { session: "s".into() });
        assert_eq!(pairing.offer("c", 2, at(1)), TicketOutcome::First { session: "t".into() });
    }

    #[test]
    fn a_flood_of_tickets_is_turned_away_until_old_ones_lapse() {
        let mut pairing = Pairing::<()>::default();
        let made = (0..TICKETS_LIMIT / 2 + 10)
            .filter(|i| pairing.expect("s", [&format!("a{i}"), &format!("b{i}")], at(0)));
        assert_eq!(made.count(), TICKETS_LIMIT / 2);
        assert!(pairing.expect("s", ["x", "y"], at(15)));
    }
}
