//! Dialogues with interactive clients, as text: what is typed, and what must be read.
//!
//! ```text
//! # a remark
//! > ls /a                   typed
//! ? ls /a                   typed, and again as long as the answer is a lost connection
//! [b, c]                    the next line that the client writes
//! cZxid = {born}            {name} is any text; the same one, where the name comes again
//! * NodeCreated /a          the next event of a watch, whenever it came
//! ! kill the leader         an order to the ensemble
//! ```
//!
//! `{servers}` and `{server}` are known from the beginning. `{}` is any text each time. Every line
//! that the client writes must be in the dialogue, but for what its `Manners` make an event or leave
//! out, and every event.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ensemble::Ensemble;
use crate::program::Program;

/// What a line of a client is.
pub(crate) enum Line {
    /// Of no interest, or different each time.
    Noise,
    /// A watch has fired: the kind and the path.
    Event(String),
    /// An answer.
    Answer(String),
}

/// How a client writes: tells what each of its lines is.
pub(crate) type Manners = fn(String) -> Line;

struct Dialogue {
    program: Program,
    manners: Manners,
    answers: VecDeque<String>,
    events: VecDeque<String>,
    names: BTreeMap<String, String>,
    /// Whether the client has ended.
    over: bool,
    /// Where in the dialogue it is.
    at: String,
}

/// Goes through the dialogue in the file to its end, at which the client must end, too.
pub(crate) fn hold(file: &str, command: &mut Command, manners: Manners, ensemble: &mut Ensemble) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(file);
    let text = fs::read_to_string(file).unwrap();
    let names = BTreeMap::from([
        ("servers".to_owned(), ensemble.addresses().join(",")),
        ("server".to_owned(), ensemble.addresses()[0].clone()),
    ]);
    let mut dialogue = Dialogue {
        program: Program::start(command),
        manners,
        answers: VecDeque::new(),
        events: VecDeque::new(),
        names,
        over: false,
        at: String::new(),
    };
    let mut typed = String::new();
    for (number, line) in (1..).zip(text.lines()) {
        dialogue.at = format!("line {number}, after {typed:?}");
        match line.split_at_checked(2) {
            Some(("# ", _)) => {}
            Some(("> ", command)) => {
                typed = dialogue.fill(command);
                dialogue.program.say(&typed);
            }
            Some(("? ", command)) => {
                typed = dialogue.fill(command);
                dialogue.insist(&typed);
            }
            Some(("* ", event)) => dialogue.expect_event(event),
            Some(("! ", order)) => ensemble.obey(order),
            _ if line.is_empty() => {}
            _ => dialogue.expect_answer(line),
        }
    }
    while dialogue.listen() {}
    let (answers, events) = (&dialogue.answers, &dialogue.events);
    assert!(answers.is_empty() && events.is_empty(), "more was said: {answers:#?} {events:#?}");
    dialogue.program.end();
}

impl Dialogue {
    /// Reads a line, if one comes.
    fn listen(&mut self) -> bool {
        if self.over {
            return false;
        }
        let Some(line) = self.program.hear(&self.at) else {
            self.over = true;
            return false;
        };
        match (self.manners)(line) {
            Line::Noise => {}
            Line::Event(event) => self.events.push_back(event),
            Line::Answer(answer) => match self.answers.back_mut().filter(|last| is_cut(last)) {
                Some(cut) => cut.push_str(&answer),
                None => self.answers.push_back(answer),
            },
        }
        true
    }

    fn expect_answer(&mut self, pattern: &str) {
        while self.answers.front().is_none_or(|answer| is_cut(answer)) {
            assert!(self.listen(), "{}: instead of {pattern:?} the client has ended", self.at);
        }
        let answer = self.answers.pop_front().expect("there is one");
        assert!(
            matches(pattern.trim(), &answer, &mut self.names),
            "{}:\n expected: {pattern}\n     read: {answer}\n     then: {:#?}\n    known: {:#?}",
            self.at,
            self.answers,
            self.names
        );
    }

    fn expect_event(&mut self, pattern: &str) {
        while self.events.is_empty() {
            assert!(self.listen(), "{}: no event {pattern:?}, the client has ended", self.at);
        }
        let event = self.events.pop_front().expect("there is one");
        let is_that = matches(pattern, &event, &mut self.names);
        assert!(is_that, "{}: the event {event:?} in place of {pattern:?}", self.at);
    }

    /// Asks until the client is connected.
    fn insist(&mut self, command: &str) {
        assert!(self.answers.is_empty(), "before {command:?}: {:#?}", self.answers);
        loop {
            self.program.say(command);
            while self.answers.is_empty() {
                assert!(self.listen(), "after {command:?} the client has ended");
            }
            if !is_lost_connection(&self.answers[0]) {
                return;
            }
            self.answers.clear();
        }
    }

    fn fill(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }
}

/// Whether an event was told in the middle of a list, by another thread of the client: what is left
/// of the list is on a line of its own.
fn is_cut(answer: &str) -> bool {
    answer.starts_with('[') && !answer.contains(']')
}

/// What the Java and the C client say.
fn is_lost_connection(answer: &str) -> bool {
    answer.contains("ConnectionLoss")
        || answer.contains("rc = -4")
        || answer.starts_with("Error -4")
}

/// Whether the text is what the pattern describes; binds the names in it.
fn matches(pattern: &str, text: &str, names: &mut BTreeMap<String, String>) -> bool {
    let Some((literal, rest)) = pattern.split_once('{') else { return pattern == text };
    let Some((name, rest)) = rest.split_once('}') else { return pattern == text };
    let Some(text) = text.strip_prefix(literal) else { return false };
    if let Some(known) = names.get(name) {
        let known = known.clone();
        return text.strip_prefix(known.as_str()).is_some_and(|text| matches(rest, text, names));
    }
    let until = rest.split('{').next().unwrap_or_default();
    let end = if until.is_empty() { Some(text.len()) } else { text.find(until) };
    let Some(end) = end else { return false };
    if !name.is_empty() {
        names.insert(name.to_owned(), text[..end].to_owned());
    }
    matches(rest, &text[end..], names)
}
