//! Which store the hub's commands mean: the one that the command line names, else the one that the hub of this
//! data folder was started with last.

use std::path::Path;
use std::path::PathBuf;
use std::path::absolute;

use serde::Deserialize;
use serde::Serialize;

use super::Call;
use super::call::variable;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::hub::HubSettings;
use crate::hub::store::EtcdConfig;
use crate::hub::store::EtcdEndpoint;
use crate::model::hub_trust::HubTrust;
use crate::os::files;
use crate::tls::trust::read_roots;

const STORE_NOTE_FILE: &str = "store.json";
const ETCD_PASSWORD_VARIABLE: &str = "CONNECT_ETCD_PASSWORD";

/// As the command line says it. The password itself is kept nowhere.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StoreOptions {
    store: Option<String>,
    ca: Option<String>,
    user: Option<String>,
    password_file: Option<String>,
    code_key_file: Option<String>,
}

impl StoreOptions {
    /// With the options that go with it; `named` is the value of `--store` or the like.
    pub fn given(call: &Call, named: Option<&str>) -> Result<Self> {
        let file = |name: &str| {
            let path = call.args.value(name).map(|file| absolute(file).or_say(|| "Cannot use this path"));
            path.transpose().map(|path| path.map(|path| path.display().to_string()))
        };
        let user = call.args.value("etcd-user").map(str::to_owned);
        let (ca, password_file) = (file("etcd-ca")?, file("etcd-password-file")?);
        let code_key_file = file("code-key-file")?;
        Ok(Self { store: named.map(str::to_owned), ca, user, password_file, code_key_file })
    }

    /// For the commands beside a hub.
    pub fn of(call: &Call, data: &Path) -> Result<Self> {
        let given = Self::given(call, call.args.value("store"))?;
        let note = if given.store.is_some() { None } else { files::read(&data.join(STORE_NOTE_FILE))? };
        Ok(note.and_then(|note| serde_json::from_slice(&note).ok()).unwrap_or(given))
    }

    /// For those commands, when the hub has started with this store.
    pub fn note(&self, data: &Path) -> Result<()> {
        let text = serde_json::to_string(self).or_say(|| "Cannot note the store")?;
        files::write(&data.join(STORE_NOTE_FILE), text.as_bytes())
    }

    /// The settings of a hub with this store.
    pub fn settings(&self, data: &Path) -> Result<HubSettings> {
        let code_key_file = self.code_key_file.as_ref().map(PathBuf::from);
        let (data, store) = (data.to_owned(), self.read()?);
        Ok(HubSettings { data, store, code_key_file, ..HubSettings::default() })
    }

    /// `None` for the disk.
    pub fn read(&self) -> Result<Option<EtcdConfig>> {
        let named = self.store.as_deref().unwrap_or("file");
        let Some(list) = named.strip_prefix("etcd=") else {
            return if named == "file" { Ok(None) } else { Err(no_such_store(named)) };
        };
        let endpoints =
            list.split(',').map(|url| EtcdEndpoint::parse(url).ok_or_else(|| no_such_store(named)));
        let trust = self.ca.as_deref().map(|file| read_roots(Path::new(file))).transpose()?;
        let login = self.user.clone().map(|user| Ok((user, self.password()?))).transpose()?;
        let trust = trust.unwrap_or(HubTrust::Public);
        Ok(Some(EtcdConfig { endpoints: endpoints.collect::<Result<_>>()?, trust, login }))
    }

    fn password(&self) -> Result<String> {
        if let Some(file) = &self.password_file {
            let text = std::fs::read_to_string(file).or_say(|| format!("Cannot read {file}"))?;
            return Ok(text.trim_end().to_owned());
        }
        variable(ETCD_PASSWORD_VARIABLE).ok_or_else(|| {
            Error::usage("--etcd-user needs a password")
                .hint(format!("Give it in {ETCD_PASSWORD_VARIABLE} or in a file: --etcd-password-file FILE"))
        })
    }
}

fn no_such_store(text: &str) -> Error {
    Error::unknown("store", text)
        .hint("Use --store file, or --store etcd=http://127.0.0.1:2379 with commas between addresses")
}
