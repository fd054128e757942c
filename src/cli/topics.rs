//! What `connect help TOPIC` prints: plain texts that the binary holds, for users, operators and auditors.
//!
//! The first line of a text is its title, `NAME: what it is about`. A line that begins at the margin and ends in a
//! colon is a heading; the manual page of the topic shows it as one.

pub struct Topic {
    pub name: &'static str,
    pub about: &'static str,
    pub text: &'static str,
}

/// In the order in which a reader needs them.
const TEXTS: &[&str] = &[
    include_str!("topics/ci.txt"),
    include_str!("topics/proxy.txt"),
    include_str!("topics/fleet.txt"),
    include_str!("topics/operate.txt"),
    include_str!("topics/environment.txt"),
    include_str!("topics/files.txt"),
    include_str!("topics/json.txt"),
    include_str!("topics/exit-codes.txt"),
    include_str!("topics/performance.txt"),
    include_str!("topics/design.txt"),
];

pub fn all() -> impl Iterator<Item = Topic> + Clone {
    TEXTS.iter().map(|text| {
        let title = text.lines().next().unwrap_or_default();
        let (name, about) = title.split_once(": ").expect("a unit test reads these titles");
        Topic { name, about, text }
    })
}

pub fn find(name: &str) -> Option<Topic> {
    all().find(|topic| topic.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::manual::Manual;
    use crate::cli::manual::TEXT;

    #[test]
    fn every_topic_has_a_title_and_fits_a_terminal() {
        let manual = Manual::parse(TEXT, |_| true).unwrap();
        for topic in all() {
            assert!(!topic.about.is_empty() && !topic.name.contains(' '), "{}", topic.name);
            assert!(
                manual.find(topic.name).is_none() || topic.name == "proxy",
                "{} is a command",
                topic.name
            );
            for line in topic.text.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", topic.name);
            }
        }
    }
}
