//! Which local port a service gets: its own, else the alternative of last time, else the next free one above it.

/// More neighbours than one machine has services of one kind.
const PORT_TRIES: u16 = 100;

/// The ports to try, in order: the port asked for in this call, the original, the alternative of last time, then
/// original + 1, + 2 and so on. A port may come twice: trying it again costs one system call.
pub fn candidates(
    asked: Option<u16>,
    original: u16,
    last_alternative: Option<u16>,
) -> impl Iterator<Item = u16> {
    let above = (1..PORT_TRIES).map_while(move |step| original.checked_add(step));
    asked.into_iter().chain([original]).chain(last_alternative).chain(above)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_comes_first_and_then_its_neighbours() {
        let ports: Vec<_> = candidates(None, 5432, None).collect();
        assert_eq!((ports.len(), ports[0], ports[1], ports[99]), (100, 5432, 5433, 5531));
        assert_eq!(candidates(None, 65_534, None).collect::<Vec<_>>(), [65_534, 65_535]);
    }

    #[test]
    fn the_asked_port_comes_before_the_original_and_the_alternative_of_last_time_after_it() {
        let ports: Vec<_> = candidates(None, 5432, Some(5434)).take(4).collect();
        assert_eq!(ports, [5432, 5434, 5433, 5434]);
        assert_eq!(candidates(Some(6000), 5432, Some(9)).take(4).collect::<Vec<_>>(), [6000, 5432, 9, 5433]);
    }
}
