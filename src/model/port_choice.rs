//! Which local port a service gets: its own, else the next free one above it.

/// More neighbours than one machine has services of one kind.
const PORT_TRIES: u16 = 100;

/// The ports to try, in order: the port of last time if there is one, then the original, then +1, +2 and so on. A
/// strict choice has one candidate.
pub fn candidates(original: u16, last_time: Option<u16>, strict: bool) -> impl Iterator<Item = u16> {
    let above = (0..if strict { 1 } else { PORT_TRIES }).map_while(move |step| original.checked_add(step));
    let before = last_time.filter(move |port| !strict && *port != original);
    before.into_iter().chain(above.filter(move |port| before != Some(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_comes_first_and_then_its_neighbours() {
        let ports: Vec<_> = candidates(5432, None, false).collect();
        assert_eq!((ports.len(), ports[0], ports[1], ports[99]), (100, 5432, 5433, 5531));
        assert_eq!(candidates(5432, None, true).collect::<Vec<_>>(), [5432]);
        assert_eq!(candidates(65_534, None, false).collect::<Vec<_>>(), [65_534, 65_535]);
    }

    #[test]
    fn the_port_of_last_time_is_tried_before_the_original_and_once() {
        let ports: Vec<_> = candidates(5432, Some(5434), false).take(4).collect();
        assert_eq!(ports, [5434, 5432, 5433, 5435]);
        assert_eq!(candidates(5432, Some(5432), false).take(2).collect::<Vec<_>>(), [5432, 5433]);
        assert_eq!(candidates(5432, Some(9), true).collect::<Vec<_>>(), [5432]);
    }
}
