//! The table of commands: parsing, help, and later the man page and completions, all come from here.

use super::Call;
use super::Outcome;
use super::commands;

pub struct Command {
    /// The words that name it: `hub key create`.
    pub path: &'static str,
    /// What stands behind those words, as help shows it.
    pub usage: &'static str,
    pub about: &'static str,
    pub positionals: (usize, usize),
    pub options: &'static [Opt],
    /// Whether `-- CMD` may follow.
    pub runs_command: bool,
    pub examples: &'static [&'static str],
    pub run: fn(&Call) -> Outcome,
}

#[derive(Clone, Copy)]
pub struct Opt {
    pub long: &'static str,
    pub short: Option<char>,
    /// What its value is called; `None` for a switch.
    pub value: Option<&'static str>,
    pub about: &'static str,
}

const fn opt(long: &'static str, value: &'static str, about: &'static str) -> Opt {
    Opt { long, short: None, value: Some(value), about }
}

const fn switch(long: &'static str, about: &'static str) -> Opt {
    Opt { long, short: None, value: None, about }
}

pub const GLOBAL: [Opt; 7] = [
    opt("hub", "URL", "Hub to use for this call; more of its fleet behind commas"),
    opt("config", "FILE", "Config file to use instead of ~/.privateconnect/config.json"),
    switch("json", "Print JSON: one value, or one object a line for what goes on"),
    Opt { short: Some('q'), ..switch("quiet", "Print results and errors only") },
    Opt { short: Some('v'), ..switch("verbose", "Say on stderr what happens underneath") },
    Opt { short: Some('h'), ..switch("help", "Show help") },
    Opt { short: Some('V'), ..switch("version", "Show the version") },
];

const DETACH: Opt =
    Opt { short: Some('d'), ..switch("detach", "Run in the background; return once it is ready") };
const PROXY: &[Opt] = &[
    opt("port", "PORT", "Port to listen on [default: 3456]"),
    switch("https", "Enable HTTPS with auto-generated certificates"),
    opt("cert", "FILE", "Path to custom TLS certificate"),
    opt("key", "FILE", "Path to custom TLS private key"),
    switch("trust", "Automatically trust the CA certificate"),
    switch("replace", "Stop the proxy that runs and take over"),
    switch("foreground", "Run in foreground (for debugging); shows a line a request"),
    opt("rewrite-host", "NAME", "Send this service its own Host, localhost:PORT (may be repeated)"),
    opt(
        "allow-origin",
        "ORIGIN",
        "Let pages from there open WebSockets, like https://app.example (may be repeated)",
    ),
    opt("connect-allow", "HOST[:PORT]", "Let CONNECT reach this outside host (may be repeated)"),
];
const PORTS: Opt =
    opt("ports", "PORT,PORT", "Look at these ports [default: those that services usually have]");
const RANGE: Opt = opt("range", "A-B", "Look at all ports from A to B");
const DATA: Opt = opt("data", "DIR", "The hub's data folder [default: ~/.privateconnect/hub]");
const STORE: Opt = opt("store", "file|etcd=URL[,URL]", "Where the registry is kept [default: file]");
const ETCD_CA: Opt = opt("etcd-ca", "FILE", "PEM file of the CA that signed etcd's certificate");
const ETCD_USER: Opt =
    opt("etcd-user", "NAME", "User towards etcd; the password is in CONNECT_ETCD_PASSWORD");
const ETCD_PASSWORD: Opt = opt("etcd-password-file", "FILE", "File that holds that password");
/// Of the commands beside a hub, which otherwise mean the store that it was started with last.
const BESIDE: &[Opt] = &[DATA, STORE, ETCD_CA, ETCD_USER, ETCD_PASSWORD];

pub const TABLE: &[Command] = &[
    Command {
        path: "hub",
        usage: "[--listen ADDRESS:PORT] [--data DIR] [--name HOST]...",
        about: "Run a hub: the meeting point that relays what it cannot read",
        positionals: (0, 0),
        options: &[
            opt("listen", "ADDRESS:PORT", "Where to listen [default: 127.0.0.1:7443]"),
            DATA,
            opt("name", "HOST", "A name or address by which clients come (may be repeated)"),
            opt(
                "tunnel-ports",
                "A-B|off",
                "Loopback ports for tunnels on this machine [default: 45000-45999]",
            ),
            STORE,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
            switch("behind-proxy", "TLS ends before us: speak plain HTTP on the listening address"),
        ],
        runs_command: false,
        examples: &[
            "connect hub",
            "connect hub --listen 0.0.0.0:7443 --name hub.example",
            "connect hub --listen 0.0.0.0:7443 --name hub-a.example --store etcd=http://127.0.0.1:2379",
        ],
        run: commands::hub::run,
    },
    Command {
        path: "hub key create",
        usage: "[--role admin|member|join] [--label L] [--workspace W] [--expires 30d]",
        about: "Make an API key; it is shown once",
        positionals: (0, 0),
        options: &[
            opt("role", "ROLE", "admin, member or join [default: member]"),
            opt("label", "LABEL", "Whose key it is"),
            opt("workspace", "NAME", "Keys see each other's services within a workspace [default: default]"),
            opt("expires", "TIME", "Lifetime like 12h or 30d [default: none]"),
            DATA,
            STORE,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        runs_command: false,
        examples: &["connect hub key create --role join --label ci --expires 30d"],
        run: commands::hub_admin::key_create,
    },
    Command {
        path: "hub key list",
        usage: "",
        about: "List the API keys",
        positionals: (0, 0),
        options: BESIDE,
        runs_command: false,
        examples: &["connect hub key list"],
        run: commands::hub_admin::key_list,
    },
    Command {
        path: "hub key revoke",
        usage: "ID",
        about: "Revoke an API key; its sessions end within a second",
        positionals: (1, 1),
        options: BESIDE,
        runs_command: false,
        examples: &["connect hub key revoke key_k3v7q2m9x4ab"],
        run: commands::hub_admin::key_revoke,
    },
    Command {
        path: "hub approve",
        usage: "CODE [--role ROLE] [--workspace W]",
        about: "Approve a machine that ran `connect up` without a key",
        positionals: (1, 1),
        options: &[
            opt("role", "ROLE", "admin, member or join [default: member]"),
            opt("workspace", "NAME", "The workspace it will be in [default: default]"),
            DATA,
            STORE,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        runs_command: false,
        examples: &["connect hub approve ABCD-EFGH"],
        run: commands::hub_admin::approve,
    },
    Command {
        path: "hub audit verify",
        usage: "",
        about: "Check that no line of the audit log was changed",
        positionals: (0, 0),
        options: &[DATA],
        runs_command: false,
        examples: &["connect hub audit verify"],
        run: commands::hub_admin::audit_verify,
    },
    Command {
        path: "hub migrate",
        usage: "--from file[=DIR]|etcd=URL --to etcd=URL|file[=DIR] [--replace]",
        about: "Copy everything that a hub keeps into another store, and read it back",
        positionals: (0, 0),
        options: &[
            opt("from", "STORE", "file, file=DIR, or etcd=URL[,URL]"),
            opt("to", "STORE", "The same; it must be empty"),
            switch("replace", "Drop what the destination holds"),
            DATA,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        runs_command: false,
        examples: &[
            "connect hub migrate --from file --to etcd=http://127.0.0.1:2379",
            "connect hub migrate --from etcd=http://127.0.0.1:2379 --to file=/srv/hub",
        ],
        run: commands::hub_migrate::run,
    },
    Command {
        path: "hub status",
        usage: "",
        about: "Show whether a hub runs on this machine, and how it is",
        positionals: (0, 0),
        options: &[DATA],
        runs_command: false,
        examples: &["connect hub status"],
        run: commands::hub_admin::status,
    },
    Command {
        path: "up",
        usage: "[--hub URL] [--api-key KEY | --token KEY] [--label L] [--ca FILE]",
        about: "Log in to a hub and register this machine",
        positionals: (0, 0),
        options: &[
            opt("api-key", "KEY", "The key from the hub; without one a code is shown to be approved"),
            opt("token", "KEY", "The same as --api-key"),
            opt("label", "LABEL", "What this machine is called [default: its host name]"),
            opt("ca", "FILE", "PEM file of the CA that signed the hub's certificate"),
        ],
        runs_command: false,
        examples: &[
            "connect up --hub https://hub.example:7443 --api-key pc_…",
            "connect up --hub https://hub.example",
        ],
        run: commands::up::run,
    },
    Command {
        path: "whoami",
        usage: "",
        about: "Show the hub, the key's role and this machine's agent",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect whoami"],
        run: commands::whoami::run,
    },
    Command {
        path: "logout",
        usage: "",
        about: "Forget the hub, the key and this machine's identity",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect logout"],
        run: commands::whoami::logout,
    },
    Command {
        path: "discover",
        usage: "[--host H] [--ports 1,2] [--range A-B] [--timeout 500ms]",
        about: "Find what listens on this machine, or on another, and what it is",
        positionals: (0, 0),
        options: &[
            opt("host", "HOST", "Name or address of the machine to look at [default: localhost]"),
            PORTS,
            RANGE,
            opt("timeout", "TIME", "How long a port has to answer [default: 500ms]"),
        ],
        runs_command: false,
        examples: &[
            "connect discover",
            "connect discover --ports 8080,8443,9000",
            "connect discover --host 192.168.1.50 --range 3000-3010",
        ],
        run: commands::discover::run,
    },
    Command {
        path: "services",
        usage: "[--watch]",
        about: "List the services that can be reached",
        positionals: (0, 0),
        options: &[switch("watch", "Stay, and show what changes; a line or JSON object a change in a pipe")],
        runs_command: false,
        examples: &["connect services", "connect services --watch", "connect services --json"],
        run: commands::services::run,
    },
    Command {
        path: "expose",
        usage: "NAME PORT | [HOST:]PORT --name NAME",
        about: "Make a service beside this machine reachable",
        positionals: (1, 2),
        options: &[
            opt("name", "NAME", "What the service is called"),
            opt("protocol", "tcp|http|https", "What it speaks, for those who look [default: tcp]"),
            DETACH,
        ],
        runs_command: false,
        examples: &["connect expose staging-db 5432", "connect expose 192.168.1.50:8080 --name internal-api"],
        run: commands::expose::run,
    },
    Command {
        path: "reach",
        usage: "NAME [PORT] [-- CMD...]",
        about: "Bring a service to a port on this machine",
        positionals: (1, 2),
        options: &[
            opt("port", "PORT", "Local port [default: the service's own]"),
            switch("check", "Only look whether it can be reached"),
            opt("timeout", "TIME", "How long reaching it may take [default: 5s]"),
            DETACH,
        ],
        runs_command: true,
        examples: &[
            "connect reach staging-db",
            "connect reach staging-db 6000",
            "connect reach staging-db -- psql -h localhost app",
        ],
        run: commands::reach::run,
    },
    Command {
        path: "share",
        usage: "[[NAME=][HOST:]PORT...] [--discovered] [--name N] [--service NAME]... [--expires 24h] [--link]",
        about: "Share services by a code: those given, or all that this machine exposes",
        positionals: (0, 100),
        options: &[
            opt("name", "NAME", "What the shared environment is called"),
            opt("service", "NAME", "A service that is exposed already (may be repeated)"),
            switch("discovered", "Share what `connect discover` finds on this machine, by its names there"),
            PORTS,
            RANGE,
            opt("expires", "TIME", "How long the code works [default: 24h]"),
            opt("max-joins", "N", "How often it may be joined [default: any number]"),
            opt("code", "CODE", "Choose the code: 6 to 32 letters and digits"),
            switch("link", "Make a link too: it needs no account, and not even the hub can stand in between"),
            DETACH,
        ],
        runs_command: false,
        examples: &[
            "connect share 5432 6379 api=8080 --name staging-env",
            "connect share --discovered",
            "connect share --expires 2h --link",
        ],
        run: commands::share::run,
    },
    Command {
        path: "share list",
        usage: "",
        about: "List the shares, and who joined them",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect share list"],
        run: commands::share::list,
    },
    Command {
        path: "share revoke",
        usage: "CODE|ID",
        about: "Revoke a share; its sessions end within a second",
        positionals: (1, 1),
        options: &[],
        runs_command: false,
        examples: &["connect share revoke k7m2p9qx"],
        run: commands::share::revoke,
    },
    Command {
        path: "join",
        usage: "CODE|LINK|- [--port NAME=PORT]... [--wait 60s] [-- CMD...]",
        about: "Bring a teammate's shared services to this machine",
        positionals: (0, 1),
        options: &[
            opt("port", "NAME=PORT", "Local port for a service (may be repeated)"),
            switch("strict-ports", "Fail rather than move to another port"),
            opt("wait", "TIME", "Wait this long for services that are not there yet"),
            opt("env-file", "FILE", "Write NAME_HOST, NAME_PORT and NAME_ADDR for each service"),
            DETACH,
        ],
        runs_command: true,
        examples: &[
            "connect join abc123",
            "connect join abc123 --port postgres=6000",
            "CONNECT_JOIN=\"$LINK\" connect join - -- npm test",
        ],
        run: commands::join::run,
    },
    Command {
        path: "dev",
        usage: "[--file pconnect.yml] [--init] [--wait 60s] [-- CMD...]",
        about: "Bring everything here that the project's pconnect.yml names",
        positionals: (0, 0),
        options: &[
            opt("file", "FILE", "The project's file [default: pconnect.yml, here or above]"),
            switch("init", "Write a commented pconnect.yml from the services there are"),
            opt("wait", "TIME", "Wait this long for services that are not there yet"),
            opt("env-file", "FILE", "Write NAME_HOST, NAME_PORT and NAME_ADDR for each service"),
            DETACH,
        ],
        runs_command: true,
        examples: &["connect dev --init", "connect dev", "connect dev -- npm start"],
        run: commands::dev::run,
    },
    Command {
        path: "status",
        usage: "",
        about: "Show what of connect runs on this machine",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect status"],
        run: commands::status::status,
    },
    Command {
        path: "stop",
        usage: "NAME|CODE|--all",
        about: "Stop what runs on this machine, in the background or in a terminal",
        positionals: (0, 1),
        options: &[switch("all", "Everything")],
        runs_command: false,
        examples: &["connect stop staging-db", "connect stop --all"],
        run: commands::status::stop,
    },
    Command {
        path: "proxy",
        usage: "[start|stop|status|trust|untrust|logs] [options]",
        about: "Open every service at http://NAME.localhost:3456 (the same as proxy start)",
        positionals: (0, 0),
        options: PROXY,
        runs_command: false,
        examples: &["connect proxy", "connect proxy --https"],
        run: commands::proxy::start,
    },
    Command {
        path: "proxy start",
        usage: "[--port PORT] [--https] [--foreground]",
        about: "Start the proxy server",
        positionals: (0, 0),
        options: PROXY,
        runs_command: false,
        examples: &[
            "connect proxy start",
            "connect proxy start --https --trust",
            "connect proxy start --port 8080 --replace",
        ],
        run: commands::proxy::start,
    },
    Command {
        path: "proxy stop",
        usage: "",
        about: "Stop the running proxy server",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect proxy stop"],
        run: commands::proxy::stop,
    },
    Command {
        path: "proxy status",
        usage: "",
        about: "Show proxy status and active routes",
        positionals: (0, 0),
        options: &[],
        runs_command: false,
        examples: &["connect proxy status"],
        run: commands::proxy::status,
    },
    Command {
        path: "proxy trust",
        usage: "[--user] [--dry-run]",
        about: "Trust the local CA certificate for HTTPS",
        positionals: (0, 0),
        options: &[
            switch("dry-run", "Show what would be done"),
            switch("user", "Only this user's browsers; needs no root"),
        ],
        runs_command: false,
        examples: &["connect proxy trust"],
        run: commands::proxy_trust::trust,
    },
    Command {
        path: "proxy untrust",
        usage: "[--user] [--dry-run]",
        about: "Undo what trust did, in every store",
        positionals: (0, 0),
        options: &[
            switch("dry-run", "Show what would be done"),
            switch("user", "Only this user's browsers; needs no root"),
        ],
        runs_command: false,
        examples: &["connect proxy untrust"],
        run: commands::proxy_trust::untrust,
    },
    Command {
        path: "proxy logs",
        usage: "[-f]",
        about: "Show the proxy's log",
        positionals: (0, 0),
        options: &[Opt { short: Some('f'), ..switch("follow", "Go on with what is added") }],
        runs_command: false,
        examples: &["connect proxy logs -f"],
        run: commands::proxy::logs,
    },
    Command {
        path: "help",
        usage: "[COMMAND]",
        about: "Show help for a command",
        positionals: (0, 3),
        options: &[],
        runs_command: false,
        examples: &["connect help reach"],
        run: commands::help::run,
    },
];
