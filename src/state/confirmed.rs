//! `confirmed.json`: for each project file, the hash of the `expose:` list that the user has confirmed last.

use std::collections::BTreeMap;
use std::path::Path;

use super::home::Home;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::target::Target;
use crate::os::secret;

const CONFIRMED_FILE: &str = "confirmed.json";
/// More projects than one user has. At the limit the file starts over empty.
const CONFIRMED_PROJECTS_LIMIT: usize = 1000;

pub type ExposeList = BTreeMap<Name, Target>;
/// By the absolute path of the project's file.
type ConfirmedLists = BTreeMap<String, String>;

pub fn contains(home: &Home, project: &Path, list: &ExposeList) -> bool {
    let lists: ConfirmedLists = home.read(CONFIRMED_FILE).ok().flatten().unwrap_or_default();
    lists.get(&key_of(project)).is_some_and(|hash| *hash == hash_of(list))
}

pub fn add(home: &Home, project: &Path, list: &ExposeList) -> Result<()> {
    home.update(CONFIRMED_FILE, |lists: &mut ConfirmedLists| {
        if lists.len() >= CONFIRMED_PROJECTS_LIMIT {
            lists.clear();
        }
        lists.insert(key_of(project), hash_of(list));
    })
}

pub fn remove(home: &Home, project: &Path) -> Result<()> {
    home.update(CONFIRMED_FILE, |lists: &mut ConfirmedLists| _ = lists.remove(&key_of(project)))
}

fn key_of(project: &Path) -> String {
    std::path::absolute(project).unwrap_or_else(|_| project.to_owned()).display().to_string()
}

fn hash_of(list: &ExposeList) -> String {
    let lines = list.iter().map(|(name, target)| format!("{name} {target}\n"));
    secret::hash(&lines.collect::<String>())
}
