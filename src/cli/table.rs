//! The table of commands: parsing, help, the manual page and the shells' completions all come from here.

use super::command::Command;
use super::command::Opt;
use super::command::opt;
use super::command::switch;
use super::commands;
use super::help;

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
const WAIT: Opt = opt("wait", "TIME", "Wait this long for services, and a hub, that are not there yet");
const ENV_FILE: Opt = opt("env-file", "FILE", "Write NAME_HOST, NAME_PORT and NAME_ADDR for each service");
const ROLE: Opt = opt("role", "admin|member|join", "What it may do [default: member]");
const FOLLOW: Opt = Opt { short: Some('f'), ..switch("follow", "Go on with what is added") };
const SERVICE: &[Opt] = &[
    switch("system", "For the whole machine, from boot on; needs root"),
    switch("dry-run", "Show what would be done"),
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

/// The most of them have no arguments, no options of their own, and no command behind `--`.
const PLAIN: Command = Command {
    path: "",
    usage: "",
    about: "",
    positionals: (0, 0),
    options: &[],
    runs_command: false,
    examples: &[],
    run: help::run,
};

pub const TABLE: &[Command] = &[
    Command {
        path: "hub",
        usage: "[--listen ADDRESS:PORT] [--data DIR] [--name HOST]...",
        about: "Run a hub: the meeting point that relays what it cannot read",
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
        examples: &[
            "connect hub",
            "connect hub --listen 0.0.0.0:7443 --name hub.example",
            "connect hub --listen 0.0.0.0:7443 --name hub-a.example --store etcd=http://127.0.0.1:2379",
        ],
        run: commands::hub::run,
        ..PLAIN
    },
    Command {
        path: "hub key create",
        usage: "[--role admin|member|join] [--label L] [--workspace W] [--expires 30d]",
        about: "Make an API key; it is shown once",
        options: &[
            ROLE,
            opt("label", "LABEL", "Whose key it is"),
            opt("workspace", "NAME", "Keys see each other's services within a workspace [default: default]"),
            opt("expires", "TIME", "Lifetime like 12h or 30d [default: none]"),
            DATA,
            STORE,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        examples: &["connect hub key create --role join --label ci --expires 30d"],
        run: commands::hub_admin::key_create,
        ..PLAIN
    },
    Command {
        path: "hub key list",
        about: "List the API keys",
        options: BESIDE,
        run: commands::hub_admin::key_list,
        ..PLAIN
    },
    Command {
        path: "hub key revoke",
        usage: "ID",
        about: "Revoke an API key; its sessions end within a second",
        positionals: (1, 1),
        options: BESIDE,
        examples: &["connect hub key revoke key_k3v7q2m9x4ab"],
        run: commands::hub_admin::key_revoke,
        ..PLAIN
    },
    Command {
        path: "hub approve",
        usage: "CODE [--role ROLE] [--workspace W]",
        about: "Approve a machine that ran `connect up` without a key",
        positionals: (1, 1),
        options: &[
            ROLE,
            opt("workspace", "NAME", "The workspace it will be in [default: default]"),
            DATA,
            STORE,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        examples: &["connect hub approve ABCD-EFGH"],
        run: commands::hub_admin::approve,
        ..PLAIN
    },
    Command {
        path: "hub audit verify",
        about: "Check that no line of the audit log was changed",
        options: &[DATA],
        run: commands::hub_admin::audit_verify,
        ..PLAIN
    },
    Command {
        path: "hub migrate",
        usage: "--from file[=DIR]|etcd=URL --to etcd=URL|file[=DIR] [--replace]",
        about: "Copy everything that a hub keeps into another store, and read it back",
        options: &[
            opt("from", "STORE", "file, file=DIR, or etcd=URL[,URL]"),
            opt("to", "STORE", "The same; it must be empty"),
            switch("replace", "Drop what the destination holds"),
            DATA,
            ETCD_CA,
            ETCD_USER,
            ETCD_PASSWORD,
        ],
        examples: &[
            "connect hub migrate --from file --to etcd=http://127.0.0.1:2379",
            "connect hub migrate --from etcd=http://127.0.0.1:2379 --to file=/srv/hub",
        ],
        run: commands::hub_migrate::run,
        ..PLAIN
    },
    Command {
        path: "hub status",
        about: "Show whether a hub runs on this machine, and how it is",
        options: &[DATA],
        run: commands::hub_admin::status,
        ..PLAIN
    },
    Command {
        path: "up",
        usage: "[--hub URL] [--api-key KEY | --token KEY] [--label L] [--ca FILE]",
        about: "Log in to a hub and register this machine",
        options: &[
            opt("api-key", "KEY", "The key from the hub; without one a code is shown to be approved"),
            opt("token", "KEY", "The same as --api-key"),
            opt("label", "LABEL", "What this machine is called [default: its host name]"),
            opt("ca", "FILE", "PEM file of the CA that signed the hub's certificate"),
        ],
        examples: &[
            "connect up --hub https://hub.example:7443 --api-key pc_…",
            "connect up --hub https://hub.example",
        ],
        run: commands::up::run,
        ..PLAIN
    },
    Command {
        path: "whoami",
        about: "Show the hub, the key's role and this machine's agent",
        run: commands::whoami::run,
        ..PLAIN
    },
    Command {
        path: "logout",
        about: "Forget the hub, the key and this machine's identity",
        run: commands::whoami::logout,
        ..PLAIN
    },
    Command {
        path: "discover",
        usage: "[--host H] [--ports 1,2] [--range A-B] [--timeout 500ms]",
        about: "Find what listens on this machine, or on another, and what it is",
        options: &[
            opt("host", "HOST", "Name or address of the machine to look at [default: localhost]"),
            PORTS,
            RANGE,
            opt("timeout", "TIME", "How long a port has to answer [default: 500ms]"),
        ],
        examples: &[
            "connect discover",
            "connect discover --ports 8080,8443,9000",
            "connect discover --host 192.168.1.50 --range 3000-3010",
        ],
        run: commands::discover::run,
        ..PLAIN
    },
    Command {
        path: "services",
        usage: "[--watch]",
        about: "List the services that can be reached",
        options: &[switch("watch", "Stay, and show what changes; a line or JSON object a change in a pipe")],
        examples: &["connect services", "connect services --watch", "connect services --json"],
        run: commands::services::run,
        ..PLAIN
    },
    Command {
        path: "expose",
        usage: "NAME PORT | [HOST:]PORT --name NAME",
        about: "Make a service beside this machine reachable",
        positionals: (1, 2),
        options: &[
            opt("name", "NAME", "What the service is called"),
            opt("protocol", "tcp|http|https", "What it speaks, for those who look [default: tcp]"),
            switch(
                "keep",
                "Save it: the daemon keeps it exposed, after a reboot too; connect stop NAME undoes it",
            ),
            DETACH,
        ],
        examples: &[
            "connect expose staging-db 5432",
            "connect expose 192.168.1.50:8080 --name internal-api",
            "connect expose staging-db 5432 --keep",
        ],
        run: commands::expose::run,
        ..PLAIN
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
            "connect reach staging-db -- sh -c 'psql -h localhost -p $STAGING_DB_PORT app'",
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
        examples: &[
            "connect share 5432 6379 api=8080 --name staging-env",
            "connect share --discovered",
            "connect share --expires 2h --link",
        ],
        run: commands::share::run,
        ..PLAIN
    },
    Command {
        path: "share list",
        about: "List the shares, and who joined them",
        run: commands::share::list,
        ..PLAIN
    },
    Command {
        path: "share revoke",
        usage: "CODE|ID",
        about: "Revoke a share; its sessions end within a second",
        positionals: (1, 1),
        examples: &["connect share revoke k7m2p9qx"],
        run: commands::share::revoke,
        ..PLAIN
    },
    Command {
        path: "join",
        usage: "CODE|LINK|- [--port NAME=PORT]... [--wait 60s] [-- CMD...]",
        about: "Bring a teammate's shared services to this machine",
        positionals: (0, 1),
        options: &[
            opt("port", "NAME=PORT", "Local port for a service (may be repeated)"),
            switch("strict-ports", "Fail rather than move to another port"),
            WAIT,
            ENV_FILE,
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
        options: &[
            opt("file", "FILE", "The project's file [default: pconnect.yml, here or above]"),
            switch("init", "Write a commented pconnect.yml from the services there are"),
            WAIT,
            ENV_FILE,
            DETACH,
        ],
        runs_command: true,
        examples: &["connect dev --init", "connect dev", "connect dev -- npm start"],
        run: commands::dev::run,
        ..PLAIN
    },
    Command {
        path: "status",
        about: "Show what of connect runs on this machine",
        run: commands::status::status,
        ..PLAIN
    },
    Command {
        path: "stop",
        usage: "NAME|CODE|--all",
        about: "Stop what runs on this machine, in the background or in a terminal",
        positionals: (0, 1),
        options: &[switch("all", "Everything")],
        examples: &["connect stop staging-db", "connect stop --all"],
        run: commands::status::stop,
        ..PLAIN
    },
    Command {
        path: "daemon start",
        usage: "[--foreground]",
        about: "Keep up, in the background, what `connect expose --keep` has saved",
        options: &[switch("foreground", "Stay in this terminal, as containers and supervisors want it")],
        examples: &["connect daemon start", "connect daemon start --foreground"],
        run: commands::daemon::start,
        ..PLAIN
    },
    Command {
        path: "daemon stop",
        about: "Stop the daemon; what is saved comes back with its next start",
        run: commands::daemon::stop,
        ..PLAIN
    },
    Command {
        path: "daemon restart",
        about: "Stop the daemon and start it again, as after an update",
        run: commands::daemon::restart,
        ..PLAIN
    },
    Command {
        path: "daemon status",
        about: "Show whether the daemon runs, and what it keeps exposed",
        examples: &["connect daemon status", "connect daemon status --json"],
        run: commands::daemon::status,
        ..PLAIN
    },
    Command {
        path: "daemon logs",
        usage: "[-f]",
        about: "Show the daemon's log",
        options: &[FOLLOW],
        examples: &["connect daemon logs -f"],
        run: commands::daemon::logs,
        ..PLAIN
    },
    Command {
        path: "daemon install",
        usage: "[--system] [--dry-run]",
        about: "Have systemd or launchd start the daemon, now and after every reboot",
        options: SERVICE,
        examples: &[
            "connect daemon install --dry-run",
            "connect daemon install",
            "sudo connect daemon install --system",
        ],
        run: commands::daemon_service::install,
        ..PLAIN
    },
    Command {
        path: "daemon uninstall",
        usage: "[--system] [--dry-run]",
        about: "Undo what install did",
        options: SERVICE,
        run: commands::daemon_service::uninstall,
        ..PLAIN
    },
    Command {
        path: "doctor",
        usage: "[--fix]",
        about: "Look at everything that connect needs, and say how to mend what is amiss",
        options: &[switch("fix", "Mend what can be mended without asking: file modes, stale entries")],
        examples: &["connect doctor", "connect doctor --fix"],
        run: commands::doctor::run,
        ..PLAIN
    },
    Command {
        path: "proxy",
        usage: "[start|stop|status|trust|untrust|logs] [options]",
        about: "Open every service at http://NAME.localhost:3456 (the same as proxy start)",
        options: PROXY,
        examples: &["connect proxy", "connect proxy --https"],
        run: commands::proxy::start,
        ..PLAIN
    },
    Command {
        path: "proxy start",
        usage: "[--port PORT] [--https] [--foreground]",
        about: "Start the proxy server",
        options: PROXY,
        examples: &[
            "connect proxy start",
            "connect proxy start --https --trust",
            "connect proxy start --port 8080 --replace",
        ],
        run: commands::proxy::start,
        ..PLAIN
    },
    Command {
        path: "proxy stop",
        about: "Stop the running proxy server",
        run: commands::proxy::stop,
        ..PLAIN
    },
    Command {
        path: "proxy status",
        about: "Show proxy status and active routes",
        run: commands::proxy::status,
        ..PLAIN
    },
    Command {
        path: "proxy trust",
        usage: "[--user] [--dry-run]",
        about: "Trust the local CA certificate for HTTPS",
        options: &[
            switch("dry-run", "Show what would be done"),
            switch("user", "Only this user's browsers; needs no root"),
        ],
        run: commands::proxy_trust::trust,
        ..PLAIN
    },
    Command {
        path: "proxy untrust",
        usage: "[--user] [--dry-run]",
        about: "Undo what trust did, in every store",
        options: &[
            switch("dry-run", "Show what would be done"),
            switch("user", "Only this user's browsers; needs no root"),
        ],
        run: commands::proxy_trust::untrust,
        ..PLAIN
    },
    Command {
        path: "proxy logs",
        usage: "[-f]",
        about: "Show the proxy's log",
        options: &[FOLLOW],
        examples: &["connect proxy logs -f"],
        run: commands::proxy::logs,
        ..PLAIN
    },
    Command {
        path: "completions",
        usage: "bash|zsh|fish",
        about: "Print the script with which a shell completes commands, options, services, codes and names",
        positionals: (1, 1),
        examples: &[
            "source <(connect completions bash)",
            "connect completions zsh > \"${fpath[1]}/_connect\"",
            "connect completions fish > ~/.config/fish/completions/connect.fish",
        ],
        run: commands::completions::script,
        ..PLAIN
    },
    Command {
        path: "completions words",
        usage: "-- WORD...",
        about: "Print what could stand in the place of the last word; the scripts above ask this",
        runs_command: true,
        examples: &["connect completions words -- reach st"],
        run: commands::completions::words,
        ..PLAIN
    },
    Command {
        path: "help",
        usage: "[COMMAND]",
        about: "Show help for a command",
        positionals: (0, 3),
        options: &[switch("man", "Print the whole manual page, for man")],
        examples: &["connect help reach", "connect help --man > connect.1 && man ./connect.1"],
        run: help::run,
        ..PLAIN
    },
];
