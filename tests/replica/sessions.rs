//! The clocks of sessions: nobody expires early, and silence is noticed in time.

use conclave::session::{Claim, Due, Sessions, Standing};
use conclave_proto::{ServerId, SessionId, Xid, Zxid};

const SILENCE_MS: u64 = 500;

fn server(number: u8) -> ServerId {
    ServerId::new(number).expect("a small number")
}

fn claim(count: u64) -> Claim {
    Claim(Zxid::from_bits(count))
}

fn expired(due: &Due) -> Vec<u64> {
    due.expired.iter().map(|session| session.0).collect()
}

fn polled(due: &Due) -> Vec<u8> {
    due.poll.iter().map(|server| server.get()).collect()
}

/// What is due at the next tick.
fn due(sessions: &mut Sessions, limit: usize) -> Due {
    sessions.advance(0);
    sessions.due(limit)
}

/// Sessions 1 and 2, with timeouts of 1 and 2 seconds.
fn two() -> Sessions {
    let mut sessions =
        Sessions::new(server(1), SILENCE_MS, [(SessionId(1), 1_000), (SessionId(2), 2_000)]);
    sessions.advance(0);
    sessions
}

#[test]
fn a_new_leader_gives_everybody_the_full_timeout() {
    let mut sessions = two();
    sessions.advance(999);
    assert_eq!(expired(&due(&mut sessions, 10)), [0; 0]);
    sessions.advance(1);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
    sessions.advance(1_000);
    assert_eq!(expired(&due(&mut sessions, 10)), [2]);
    assert_eq!(expired(&due(&mut sessions, 10)), [0; 0], "each end is proposed once");
}

#[test]
fn a_sign_of_life_counts_from_when_it_was_given() {
    let mut sessions = two();
    sessions.advance(900);
    assert!(sessions.touch(SessionId(1), server(2), 300, claim(1)));
    sessions.advance(0);
    // Heard at 900, given at 600: alive until 1600.
    sessions.report(server(2), 900);
    sessions.advance(699);
    sessions.report(server(2), 1_599);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1);
    sessions.report(server(2), 1_600);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

#[test]
fn a_sign_of_life_between_two_ticks_counts_from_the_second() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    // The clock stood still all the time.
    sessions.advance(400);
    sessions.report(server(2), 400);
    sessions.advance(999);
    sessions.report(server(2), 1_399);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1);
    sessions.report(server(2), 1_400);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

#[test]
fn nobody_expires_at_the_tick_that_ends_a_long_silence() {
    let mut sessions = two();
    sessions.advance(5_000);
    // The leader itself may have stood still: what came meanwhile is heard before the next tick.
    assert_eq!(sessions.due(10), Due::default());
    sessions.touch(SessionId(1), server(1), 0, claim(1));
    sessions.advance(10);
    assert_eq!(expired(&sessions.due(10)), [2]);
}

#[test]
fn a_server_is_asked_before_its_session_expires() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 0);
    sessions.advance(600);
    sessions.report(server(2), 0);
    sessions.advance(400);
    let first = due(&mut sessions, 10);
    assert_eq!((expired(&first), polled(&first)), (vec![], vec![2]));
    // It has heard of the session meanwhile.
    sessions.touch(SessionId(1), server(2), 50, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 1_000);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(949);
    sessions.report(server(2), 1_000);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1);
    assert_eq!(polled(&due(&mut sessions, 10)), [2]);
    // It has not.
    sessions.report(server(2), 1_950);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

#[test]
fn a_silent_server_is_not_waited_for() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 0);
    sessions.advance(1_000);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

#[test]
fn at_most_so_many_expire_at_once() {
    let mut sessions =
        Sessions::new(server(1), SILENCE_MS, (1..=5).map(|id| (SessionId(id), 1_000)));
    sessions.advance(0);
    sessions.advance(5_000);
    assert_eq!(expired(&due(&mut sessions, 2)), [1, 2]);
    assert_eq!(expired(&due(&mut sessions, 2)), [3, 4]);
    assert_eq!(expired(&due(&mut sessions, 2)), [5]);
}

#[test]
fn the_later_claim_holds() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.attach(SessionId(1), server(3), 7, claim(2));
    sessions.advance(0);
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(1)), Standing::Moved);
    assert_eq!(sessions.standing(SessionId(1), server(3), claim(2)), Standing::Owner);
    // Its client may speak to the server that it leaves until the move is committed, and is alive.
    sessions.advance(500);
    assert!(sessions.touch(SessionId(1), server(2), 0, claim(1)));
    sessions.advance(500);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1_000);
    assert_eq!(expired(&due(&mut sessions, 10)), [1, 2]);
}

#[test]
fn a_new_leader_learns_claims_in_any_order() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(3), 0, claim(2));
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(1)), Standing::Moved);
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.touch(SessionId(1), server(3), 0, claim(2));
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(1)), Standing::Moved);
    // A write may come before the report of the server that it comes by way of.
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    assert_eq!(sessions.standing(SessionId(1), server(3), claim(2)), Standing::Owner);
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(1)), Standing::Moved);
}

#[test]
fn an_end_that_is_none_leaves_nothing_behind() {
    let size = |sessions: &Sessions| format!("{sessions:?}").len();
    let mut sessions = two();
    let before = size(&sessions);
    for _ in 0..1_000 {
        sessions.closing(SessionId(1));
        sessions.stays(SessionId(1));
    }
    assert_eq!(size(&sessions), before);
    sessions.advance(1_000);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

#[test]
fn a_closed_session_is_gone() {
    let mut sessions = two();
    sessions.closing(SessionId(1));
    sessions.advance(1_500);
    assert_eq!(due(&mut sessions, 10), Due::default(), "its end is proposed already");
    sessions.close(SessionId(1));
    assert_eq!(sessions.standing(SessionId(1), server(1), claim(1)), Standing::Gone);
    assert!(!sessions.touch(SessionId(1), server(1), 0, claim(1)));
    assert_eq!(sessions.count(), 1);
}

#[test]
fn what_was_proposed_is_remembered() {
    let mut sessions = two();
    sessions.proposed(SessionId(1), Xid(5));
    assert!(sessions.was_proposed(SessionId(1), Xid(5)));
    assert!(sessions.was_proposed(SessionId(1), Xid(3)));
    assert!(!sessions.was_proposed(SessionId(1), Xid(6)));
    assert!(!sessions.was_proposed(SessionId(2), Xid(1)));
}

/// The alarm of a session goes off while its end is proposed. When that was none, there is another.
#[test]
fn a_session_whose_end_was_none_expires_though_its_time_came_meanwhile() {
    let mut sessions = two();
    sessions.closing(SessionId(1));
    sessions.advance(1_000);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.stays(SessionId(1));
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

/// In a new epoch the ends that were proposed in the one before are proposed again when they are due,
/// and everybody has the whole timeout.
#[test]
fn a_new_epoch_knows_of_no_end_and_gives_everybody_the_full_timeout() {
    let mut sessions = two();
    sessions.advance(900);
    sessions.closing(SessionId(1));
    sessions.restart();
    assert!(!sessions.is_closing(SessionId(1)));
    sessions.advance(0);
    sessions.advance(999);
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1);
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

/// A client is not told that it is safe once its end is proposed.
#[test]
fn a_sign_of_life_comes_too_late_once_the_end_is_proposed() {
    let mut sessions = two();
    sessions.closing(SessionId(1));
    assert!(!sessions.touch(SessionId(1), server(2), 0, claim(1)));
    sessions.stays(SessionId(1));
    assert!(sessions.touch(SessionId(1), server(2), 0, claim(1)));
}

/// What a server says to have reported cannot be more than there was time for: it is asked again.
#[test]
fn a_report_covers_no_time_that_is_to_come() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 1_000_000);
    sessions.advance(600);
    sessions.report(server(2), 0);
    sessions.advance(400);
    let due = due(&mut sessions, 10);
    assert_eq!((expired(&due), polled(&due)), (vec![], vec![2]));
}

/// To move is a sign of life: whoever resumes a session just in time has the whole timeout.
#[test]
fn a_move_is_a_sign_of_life() {
    let mut sessions = two();
    sessions.advance(999);
    sessions.attach(SessionId(1), server(1), 7, claim(1));
    sessions.advance(0);
    sessions.advance(999);
    sessions.report(server(1), sessions.clock_ms());
    assert_eq!(due(&mut sessions, 10), Due::default());
    sessions.advance(1);
    sessions.report(server(1), sessions.clock_ms());
    assert_eq!(expired(&due(&mut sessions, 10)), [1]);
}

/// A move is for one connection of one server.
#[test]
fn a_move_is_for_one_connection_of_one_server() {
    let mut sessions = two();
    sessions.attach(SessionId(1), server(2), 7, claim(1));
    assert!(sessions.has_moved_for(SessionId(1), server(2), 7));
    assert!(!sessions.has_moved_for(SessionId(1), server(3), 7));
    assert!(!sessions.has_moved_for(SessionId(1), server(2), 8));
    // It moves on, and comes to an earlier claim no more.
    sessions.attach(SessionId(1), server(3), 9, claim(2));
    assert!(!sessions.has_moved_for(SessionId(1), server(2), 7));
    sessions.attach(SessionId(1), server(2), 7, claim(1));
    assert!(!sessions.has_moved_for(SessionId(1), server(2), 7));
}

/// What an earlier connection has asked is not done after the session was resumed at the same server.
#[test]
fn the_later_claim_holds_at_one_server_too() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.attach(SessionId(1), server(2), 7, claim(2));
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(1)), Standing::Moved);
    assert_eq!(sessions.standing(SessionId(1), server(2), claim(2)), Standing::Owner);
}

/// A leader that stood still for long while it waited for a server's word has heard nothing since: what
/// has come meanwhile is heard before anybody expires.
#[test]
fn a_suspect_does_not_expire_at_the_tick_that_ends_a_long_silence() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 0);
    sessions.advance(700);
    sessions.report(server(2), 0);
    sessions.advance(300);
    assert_eq!(polled(&due(&mut sessions, 10)), [2]);
    // It answers: the session lives until 1,900.
    sessions.touch(SessionId(1), server(2), 100, claim(1));
    sessions.advance(0);
    sessions.report(server(2), 1_000);
    sessions.advance(2_000);
    assert_eq!(expired(&sessions.due(10)), [0; 0]);
    sessions.touch(SessionId(1), server(2), 0, claim(1));
    sessions.advance(10);
    assert_eq!(expired(&sessions.due(10)), [2], "session 2 alone was silent for 2 s");
}

/// What the leader itself has heard it takes into account before it ends a session.
#[test]
fn the_leader_asks_itself_at_the_very_moment() {
    let mut sessions = two();
    sessions.touch(SessionId(1), server(1), 0, claim(1));
    sessions.advance(0);
    sessions.report(server(1), 0);
    sessions.advance(999);
    sessions.report(server(1), 999);
    sessions.advance(1);
    let first = due(&mut sessions, 10);
    assert_eq!((expired(&first), polled(&first)), (vec![], vec![1]));
    sessions.touch(SessionId(1), server(1), 10, claim(1));
    sessions.report(server(1), sessions.clock_ms());
    assert_eq!(due(&mut sessions, 10), Due::default());
}
