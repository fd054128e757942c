//! The protocol inside a session: which frame may come when, and what each end does about it. Both ends run this state
//! machine; it knows neither sockets nor clocks.
//!
//! A session carries one connection after another. The joiner begins each with OPEN and may send data at once. The
//! agent dials its target and answers OPENED or REFUSED. Each direction ends with EOF (no more data; the other direction
//! goes on) or RESET (the connection is broken). REFUSED ends the agent's direction. When both directions have ended, the
//! session is idle and the joiner may send the next OPEN.
//!
//! - A RESET may follow an EOF of the same direction, when a half-closed connection breaks. It then breaks the connection
//!   at the other end as well: EOF and RESET together are never a clean end.
//! - If the other end has ended its own direction in the meantime, such a RESET arrives when the session is idle, or
//!   between the next OPEN and its answer. In both places it belongs to the previous connection and is ignored.
//! - After a RESET in either direction, no more data reaches the local connection. An end that has received RESET still
//!   ends its own direction, by RESET.
//! - The joiner may send PING when the session is idle. The agent answers PONG. Another PING before that is out of turn.
//! - The agent may say at any time, by ADDRESSES, where it can be reached without the hub. What it says last counts.

/// A joiner that was granted a session has this long to come.
pub const TICKET_SECONDS: u64 = 15;
/// An agent that has lost its hub ends its direct sessions after this long.
pub const LOST_HUB_SECONDS: u64 = 60;

/// What a frame says. `wire/frame.rs` has its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    Open,
    Opened,
    Refused,
    Data,
    Eof,
    Reset,
    Ping,
    Pong,
    Addresses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionRole {
    /// Opens connections, for its local clients.
    Joiner,
    /// Dials its target for each connection.
    Agent,
}

/// What an end must do after a frame or a local event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionAction {
    Nothing,
    DialTarget,
    /// Write the frame's data to the local connection.
    Deliver,
    /// Read the frame's data and drop it.
    Discard,
    /// The local connection gets an end of file.
    HalfClose,
    /// The local connection gets a reset, and threads that wait for it wake up.
    Abort,
}

/// How reading the local connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LocalEnd {
    Eof,
    Broken,
}

/// The other end does not follow the protocol, or the session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTurn(pub FrameKind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outgoing {
    /// There is nothing to send: no connection, or RESET or REFUSED was its end, or both directions have ended.
    Closed,
    /// Agent only: the target is being dialled.
    Dialling,
    /// Agent only: OPENED is the next frame to send.
    OpenedDue,
    /// Agent only: REFUSED is the next frame to send.
    RefusedDue,
    Open,
    /// Ended by EOF, while the other direction goes on.
    EofSent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Incoming {
    Closed,
    /// Joiner only: OPEN was sent.
    AwaitingAnswer,
    Open,
}

/// One end of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionProtocol {
    role: SessionRole,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The local connection has been aborted, or there is none.
    broken: bool,
    pong_due: bool,
    over: bool,
}

impl SessionProtocol {
    pub fn new(role: SessionRole) -> Self {
        Self {
            role,
            outgoing: Outgoing::Closed,
            incoming: Incoming::Closed,
            broken: false,
            pong_due: false,
            over: false,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.outgoing == Outgoing::Closed && self.incoming == Incoming::Closed
    }

    /// Agent: `dialled` is the next thing to happen.
    pub fn is_dialling(&self) -> bool {
        self.outgoing == Outgoing::Dialling
    }

    /// No frame may be sent or received any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Joiner: the agent has answered the last OPEN.
    pub fn is_answered(&self) -> bool {
        self.incoming != Incoming::AwaitingAnswer
    }

    /// Joiner: OPEN is sent next. False if this is not the time for it.
    pub fn open(&mut self) -> bool {
        if self.role != SessionRole::Joiner || self.over || !self.is_idle() {
            return false;
        }
        self.outgoing = Outgoing::Open;
        self.incoming = Incoming::AwaitingAnswer;
        true
    }

    /// Agent: dialling the target has succeeded or failed. False if nobody waits for it any more.
    pub fn dialled(&mut self, reached: bool) -> bool {
        if self.outgoing != Outgoing::Dialling {
            return false;
        }
        self.outgoing = if reached { Outgoing::OpenedDue } else { Outgoing::RefusedDue };
        self.broken |= !reached;
        true
    }

    /// A frame has arrived.
    pub fn received(&mut self, kind: FrameKind) -> Result<SessionAction, OutOfTurn> {
        // While the agent dials, it reads no frames.
        if self.over || self.is_dialling() {
            return Err(OutOfTurn(kind));
        }
        let awaiting = self.incoming == Incoming::AwaitingAnswer;
        let receiving = self.incoming == Incoming::Open;
        match (self.role, kind) {
            (SessionRole::Joiner, FrameKind::Pong | FrameKind::Addresses) => Ok(SessionAction::Nothing),
            // The joiner waits for PONG before it asks again. A peer that only asks is not read any further.
            (SessionRole::Agent, FrameKind::Ping) if self.is_idle() && !self.pong_due => {
                self.pong_due = true;
                Ok(SessionAction::Nothing)
            }
            (SessionRole::Agent, FrameKind::Open) if self.is_idle() => {
                self.outgoing = Outgoing::Dialling;
                self.incoming = Incoming::Open;
                Ok(SessionAction::DialTarget)
            }
            (SessionRole::Joiner, FrameKind::Opened) if awaiting => {
                self.incoming = Incoming::Open;
                Ok(SessionAction::Nothing)
            }
            (SessionRole::Joiner, FrameKind::Refused) if awaiting => Ok(self.break_incoming()),
            (_, FrameKind::Data) if receiving && self.broken => Ok(SessionAction::Discard),
            (_, FrameKind::Data) if receiving => Ok(SessionAction::Deliver),
            (_, FrameKind::Eof) if receiving => {
                let action = if self.broken { SessionAction::Nothing } else { SessionAction::HalfClose };
                self.incoming = Incoming::Closed;
                self.settle();
                Ok(action)
            }
            // It belongs to the previous connection.
            (_, FrameKind::Reset) if awaiting || self.is_idle() => Ok(SessionAction::Nothing),
            (_, FrameKind::Reset) => Ok(self.break_incoming()),
            _ => Err(OutOfTurn(kind)),
        }
    }

    /// The frame to send next, apart from what is read from the local connection. It counts as sent: the other end may
    /// answer before the caller gets to the next line.
    pub fn next_frame(&mut self) -> Option<FrameKind> {
        if std::mem::take(&mut self.pong_due) {
            return Some(FrameKind::Pong);
        }
        match self.outgoing {
            Outgoing::OpenedDue => {
                self.outgoing = Outgoing::Open;
                Some(FrameKind::Opened)
            }
            Outgoing::RefusedDue => {
                self.close_outgoing();
                Some(FrameKind::Refused)
            }
            // The connection broke after our EOF.
            Outgoing::EofSent if self.broken => {
                self.close_outgoing();
                Some(FrameKind::Reset)
            }
            _ => None,
        }
    }

    /// Reading the local connection has ended, and all of its data has been sent. Returns the frame that ends our direction;
    /// it counts as sent.
    pub fn local_ended(&mut self, end: LocalEnd) -> Option<FrameKind> {
        if self.outgoing != Outgoing::Open {
            return None;
        }
        self.broken |= end == LocalEnd::Broken;
        if self.broken {
            self.close_outgoing();
            return Some(FrameKind::Reset);
        }
        self.outgoing = Outgoing::EofSent;
        self.settle();
        Some(FrameKind::Eof)
    }

    /// Writing to the local connection has failed.
    pub fn local_failed(&mut self) -> SessionAction {
        let has_local = !self.is_idle() && self.outgoing != Outgoing::Dialling;
        if has_local { self.abort() } else { SessionAction::Nothing }
    }

    /// The session was cut or closed.
    pub fn end(&mut self) -> SessionAction {
        let action = if self.is_idle() { SessionAction::Nothing } else { self.abort() };
        self.over = true;
        self.outgoing = Outgoing::Closed;
        self.incoming = Incoming::Closed;
        self.pong_due = false;
        action
    }

    fn break_incoming(&mut self) -> SessionAction {
        let action = self.abort();
        self.incoming = Incoming::Closed;
        self.settle();
        action
    }

    fn close_outgoing(&mut self) {
        self.outgoing = Outgoing::Closed;
        self.settle();
    }

    fn abort(&mut self) -> SessionAction {
        if std::mem::replace(&mut self.broken, true) { SessionAction::Nothing } else { SessionAction::Abort }
    }

    /// After both directions have ended, nothing of this connection is left.
    fn settle(&mut self) {
        if self.incoming == Incoming::Closed && self.outgoing == Outgoing::EofSent {
            self.outgoing = Outgoing::Closed;
        }
        if self.is_idle() {
            self.broken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::collections::HashSet;

    /// State, input, what comes of it, next state. Inputs in capitals are frames that arrive; `eof`, `broken` and
    /// `failed` are the local connection's end while reading, and a failed write; `next` asks for the next frame. What
    /// comes of it is an action, or in capitals a frame to send. A frame that is not listed is out of turn, and a local
    /// event that is not listed changes nothing.
    const BOTH_ENDS: &str = "
        open            DATA    deliver     open
        open            EOF     half-close  got-eof
        open            RESET   abort       got-reset
        open            eof     EOF         eof-sent
        open            broken  RESET       reset-sent
        open            failed  abort       open-failed
        open-failed     DATA    discard     open-failed
        open-failed     EOF     -           got-reset
        open-failed     RESET   -           got-reset
        open-failed     eof     RESET       reset-sent
        open-failed     broken  RESET       reset-sent
        eof-sent        DATA    deliver     eof-sent
        eof-sent        EOF     half-close  idle
        eof-sent        RESET   abort       idle
        eof-sent        failed  abort       eof-sent-failed
        eof-sent-failed DATA    discard     eof-sent-failed
        eof-sent-failed EOF     -           idle
        eof-sent-failed RESET   -           idle
        eof-sent-failed next    RESET       reset-sent
        reset-sent      DATA    discard     reset-sent
        reset-sent      EOF     -           idle
        reset-sent      RESET   -           idle
        got-eof         RESET   abort       got-reset
        got-eof         eof     EOF         idle
        got-eof         broken  RESET       idle
        got-eof         failed  abort       got-reset
        got-reset       RESET   -           got-reset
        got-reset       eof     RESET       idle
        got-reset       broken  RESET       idle
        idle            RESET   -           idle
    ";

    const JOINER: &str = "
        idle                open    OPEN    opening
        opening             OPENED  -       open
        opening             REFUSED abort   got-reset
        opening             RESET   -       opening
        opening             eof     EOF     opening-eof
        opening             broken  RESET   opening-reset
        opening             failed  abort   opening-failed
        opening-failed      OPENED  -       open-failed
        opening-failed      REFUSED -       got-reset
        opening-failed      RESET   -       opening-failed
        opening-failed      eof     RESET   opening-reset
        opening-failed      broken  RESET   opening-reset
        opening-eof         OPENED  -       eof-sent
        opening-eof         REFUSED abort   idle
        opening-eof         RESET   -       opening-eof
        opening-eof         failed  abort   opening-eof-failed
        opening-eof-failed  OPENED  -       eof-sent-failed
        opening-eof-failed  REFUSED -       idle
        opening-eof-failed  RESET   -       opening-eof-failed
        opening-eof-failed  next    RESET   opening-reset
        opening-reset       OPENED  -       reset-sent
        opening-reset       REFUSED -       idle
        opening-reset       RESET   -       opening-reset
    ";

    const AGENT: &str = "
        idle                 OPEN        dial        dialling
        idle                 PING        -           idle
        dialling             reached     yes         opened-due
        dialling             unreached   yes         refused-due
        opened-due           DATA        deliver     opened-due
        opened-due           EOF         half-close  opened-due-got-eof
        opened-due           RESET       abort       opened-due-got-reset
        opened-due           next        OPENED      open
        opened-due           failed      abort       opened-due-failed
        opened-due-failed    DATA        discard     opened-due-failed
        opened-due-failed    EOF         -           opened-due-got-reset
        opened-due-failed    RESET       -           opened-due-got-reset
        opened-due-failed    next        OPENED      open-failed
        opened-due-got-eof   RESET       abort       opened-due-got-reset
        opened-due-got-eof   next        OPENED      got-eof
        opened-due-got-eof   failed      abort       opened-due-got-reset
        opened-due-got-reset RESET       -           opened-due-got-reset
        opened-due-got-reset next        OPENED      got-reset
        refused-due          DATA        discard     refused-due
        refused-due          EOF         -           refused-due-ended
        refused-due          RESET       -           refused-due-ended
        refused-due          next        REFUSED     reset-sent
        refused-due-ended    RESET       -           refused-due-ended
        refused-due-ended    next        REFUSED     idle
    ";

    const FRAMES: [(&str, FrameKind); 9] = [
        ("OPEN", FrameKind::Open),
        ("OPENED", FrameKind::Opened),
        ("REFUSED", FrameKind::Refused),
        ("DATA", FrameKind::Data),
        ("EOF", FrameKind::Eof),
        ("RESET", FrameKind::Reset),
        ("PING", FrameKind::Ping),
        ("PONG", FrameKind::Pong),
        ("ADDRESSES", FrameKind::Addresses),
    ];
    const LOCAL_EVENTS: [&str; 8] =
        ["open", "reached", "unreached", "eof", "broken", "failed", "next", "end"];

    type Rows = HashMap<(&'static str, &'static str), (&'static str, &'static str)>;

    fn rows(role: SessionRole) -> Rows {
        let own = if role == SessionRole::Joiner { JOINER } else { AGENT };
        let lines = [BOTH_ENDS, own].into_iter().flat_map(str::lines).filter(|line| !line.trim().is_empty());
        let mut rows = Rows::new();
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [state, input, result, next] = words[..] else { panic!("four words: {line}") };
            assert!(rows.insert((state, input), (result, next)).is_none(), "twice: {line}");
        }
        rows
    }

    fn action_name(action: SessionAction) -> &'static str {
        match action {
            SessionAction::Nothing => "-",
            SessionAction::DialTarget => "dial",
            SessionAction::Deliver => "deliver",
            SessionAction::Discard => "discard",
            SessionAction::HalfClose => "half-close",
            SessionAction::Abort => "abort",
        }
    }

    fn frame_name(kind: Option<FrameKind>) -> &'static str {
        kind.map_or("-", |kind| FRAMES.iter().find(|(_, one)| *one == kind).unwrap().0)
    }

    /// What the state machine makes of an input, in the table's words.
    fn step(end: &mut SessionProtocol, input: &str) -> &'static str {
        if let Some((_, kind)) = FRAMES.iter().find(|(name, _)| *name == input) {
            return end.received(*kind).map_or("out of turn", action_name);
        }
        match input {
            "open" => {
                if end.open() {
                    "OPEN"
                } else {
                    "-"
                }
            }
            "reached" => {
                if end.dialled(true) {
                    "yes"
                } else {
                    "-"
                }
            }
            "unreached" => {
                if end.dialled(false) {
                    "yes"
                } else {
                    "-"
                }
            }
            "eof" => frame_name(end.local_ended(LocalEnd::Eof)),
            "broken" => frame_name(end.local_ended(LocalEnd::Broken)),
            "failed" => action_name(end.local_failed()),
            "next" => frame_name(end.next_frame()),
            "end" => action_name(end.end()),
            _ => panic!("no input: {input}"),
        }
    }

    /// What the table says: the result, and the next state.
    fn expected(
        rows: &Rows,
        role: SessionRole,
        state: &'static str,
        input: &'static str,
    ) -> (&'static str, &'static str) {
        let is_frame = FRAMES.iter().any(|(name, _)| *name == input);
        if let Some(row) = rows.get(&(state, input)) {
            return *row;
        }
        // Nothing has to be aborted when there is no connection, or a broken one.
        let has_sound_local =
            state != "idle" && !["failed", "reset", "refused"].iter().any(|word| state.contains(word));
        match input {
            "end" => (if has_sound_local { "abort" } else { "-" }, "over"),
            "PONG" | "ADDRESSES" if role == SessionRole::Joiner => ("-", state),
            _ if is_frame => ("out of turn", "over"),
            _ => ("-", state),
        }
    }

    /// Runs every sequence of `left` more inputs, and returns how many there were.
    fn run_all(
        rows: &Rows,
        end: &SessionProtocol,
        state: &'static str,
        pong_due: bool,
        left: usize,
    ) -> usize {
        if left == 0 {
            return 1;
        }
        let mut count = 0;
        for input in FRAMES.iter().map(|(name, _)| *name).chain(LOCAL_EVENTS) {
            let mut after = end.clone();
            let result = step(&mut after, input);
            if input == "next" && pong_due {
                assert_eq!(result, "PONG", "{state}");
                count += run_all(rows, &after, state, false, left - 1);
                continue;
            }
            if input == "PING" && pong_due {
                assert_eq!(result, "out of turn", "{state}");
                continue;
            }
            let (wanted, next) = expected(rows, end.role, state, input);
            assert_eq!(result, wanted, "{:?} {state} {input}", end.role);
            assert!(next == "over" || after.is_idle() == (next == "idle"), "{:?} {state} {input}", end.role);
            if next == "over" {
                count += 1;
            } else {
                count += run_all(rows, &after, next, pong_due || input == "PING", left - 1);
            }
        }
        count
    }

    #[test]
    fn every_sequence_of_six_frames_and_local_events_goes_by_the_table() {
        for role in [SessionRole::Joiner, SessionRole::Agent] {
            let rows = rows(role);
            let count = run_all(&rows, &SessionProtocol::new(role), "idle", false, 6);
            assert!(count > 10_000, "{role:?}: {count}");
            let states: HashSet<&str> = rows.keys().map(|(state, _)| *state).collect();
            let reached: HashSet<&str> = rows.values().map(|(_, next)| *next).collect();
            assert_eq!(states, reached);
        }
    }

    #[test]
    fn after_its_end_a_session_takes_no_frame_and_sends_none() {
        for role in [SessionRole::Joiner, SessionRole::Agent] {
            let mut end = SessionProtocol::new(role);
            end.end();
            assert!(FRAMES.iter().all(|(_, kind)| end.received(*kind) == Err(OutOfTurn(*kind))));
            assert!(LOCAL_EVENTS.iter().all(|event| step(&mut end, event) == "-"));
        }
    }

    /// Both ends, and what is on the way between them. Each frame carries the number of its connection, which the ends
    /// themselves do not know.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Pair {
        ends: [SessionProtocol; 2],
        /// The connection that each end is at.
        numbers: [u8; 2],
        /// Sent to each end and not yet received.
        on_the_way: [Vec<(FrameKind, u8)>; 2],
    }

    const JOINER_END: usize = 0;
    const AGENT_END: usize = 1;
    const CONNECTIONS: u8 = 3;
    /// Frames on the way in one direction: enough for an EOF, a RESET, an OPEN and one DATA frame.
    const ON_THE_WAY: usize = 4;

    impl Pair {
        fn send(&mut self, from: usize, kind: Option<FrameKind>) {
            let number = self.numbers[from];
            self.on_the_way[1 - from].extend(kind.map(|kind| (kind, number)));
        }

        /// Receives the next frame, and checks that it acts on its own connection only.
        fn receive(&mut self, at: usize) {
            let (kind, number) = self.on_the_way[at].remove(0);
            let end = &mut self.ends[at];
            let (was_idle, was_broken) = (end.is_idle(), end.broken);
            let action = end.received(kind).unwrap_or_else(|bad| panic!("{bad:?} at {:?}", end.role));
            if action == SessionAction::DialTarget {
                self.numbers[at] = number;
            }
            let is_current = number == self.numbers[at] && !was_idle;
            match (kind, action) {
                (FrameKind::Reset, SessionAction::Abort) => {
                    assert!(is_current, "a late RESET has hit the next one");
                }
                (FrameKind::Reset, _) => assert!(!is_current || was_broken, "a RESET was ignored"),
                (_, SessionAction::Deliver | SessionAction::HalfClose) => assert!(is_current && !was_broken),
                (FrameKind::Refused, _) => assert!(is_current),
                _ => {}
            }
        }

        /// Everything that may happen next.
        fn successors(&self) -> Vec<Self> {
            let mut found = Vec::new();
            let mut add = |change: &dyn Fn(&mut Self)| {
                let mut next = self.clone();
                change(&mut next);
                if next != *self && next.on_the_way.iter().all(|frames| frames.len() <= ON_THE_WAY) {
                    found.push(next);
                }
            };
            for at in [JOINER_END, AGENT_END] {
                let end = &self.ends[at];
                if !self.on_the_way[at].is_empty() && end.outgoing != Outgoing::Dialling {
                    add(&|next| next.receive(at));
                }
                if end.outgoing == Outgoing::Open {
                    add(&|next| next.send(at, Some(FrameKind::Data)));
                }
                for how in [LocalEnd::Eof, LocalEnd::Broken] {
                    add(&|next| {
                        let frame = next.ends[at].local_ended(how);
                        next.send(at, frame);
                    });
                }
                if end.incoming == Incoming::Open {
                    add(&|next| _ = next.ends[at].local_failed());
                }
                add(&|next| {
                    let frame = next.ends[at].next_frame();
                    next.send(at, frame);
                });
            }
            for reached in [true, false] {
                add(&|next| _ = next.ends[AGENT_END].dialled(reached));
            }
            if self.ends[JOINER_END].is_idle()
                && !self.ends[AGENT_END].pong_due
                && !self
                    .on_the_way
                    .iter()
                    .flatten()
                    .any(|(kind, _)| matches!(kind, FrameKind::Ping | FrameKind::Pong))
            {
                add(&|next| next.send(JOINER_END, Some(FrameKind::Ping)));
            }
            if self.numbers[JOINER_END] < CONNECTIONS {
                add(&|next| {
                    if next.ends[JOINER_END].open() {
                        next.numbers[JOINER_END] += 1;
                        next.send(JOINER_END, Some(FrameKind::Open));
                    }
                });
            }
            found
        }
    }

    #[test]
    fn both_ends_agree_whatever_happens_in_whatever_order() {
        let ends = [SessionRole::Joiner, SessionRole::Agent].map(SessionProtocol::new);
        let first = Pair { ends, numbers: [0, 0], on_the_way: [Vec::new(), Vec::new()] };
        let mut seen = HashSet::from([first.clone()]);
        let mut left = vec![first];
        while let Some(pair) = left.pop() {
            let [joiner, agent] = &pair.ends;
            if pair.on_the_way.iter().all(Vec::is_empty) {
                assert_eq!(
                    joiner.is_idle(),
                    agent.is_idle(),
                    "one end is idle, the other has half a connection"
                );
            }
            let next = pair.successors();
            assert!(!next.is_empty() || (joiner.is_idle() && agent.is_idle()), "both ends wait");
            left.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
        }
        assert!(seen.len() > 5_000, "{} states of both ends", seen.len());
    }
}
