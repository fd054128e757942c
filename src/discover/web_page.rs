//! What an answer to `GET /` reveals: title, server, framework, and services that speak HTTP.

use super::probe::ServiceKind;
use super::probe::json_text;
use super::probe::shown;
use crate::http::body::BodyWalker;
use crate::http::body::response_body;
use crate::http::head::ResponseHead;
use crate::http::head::parse_response;

/// A title is in the first kilobytes of a page.
pub const WEB_PAGE_LIMIT: usize = 64 * 1024;

#[derive(Debug, Default, PartialEq)]
pub struct WebPage {
    pub title: Option<String>,
    pub server: Option<String>,
    pub framework: Option<String>,
    /// The kind of service, if it is one that speaks HTTP but is not a web site.
    pub kind: Option<ServiceKind>,
    pub version: Option<String>,
    /// The path on this service that it redirects to.
    pub location: Option<String>,
    /// No further bytes would change any of this.
    pub is_whole: bool,
}

/// What Go's servers answer at `/` if they have no page there. One of them, etcd, names itself at `/version`.
const BARE_404: &str = "404 page not found";

/// Where a mark is looked for: in the header field of that name, or with this value in the body.
const IN_BODY: &str = "";

/// Services that speak HTTP but are not web sites: where the mark is, the mark, the kind, and the JSON key of the
/// version.
const HTTP_SERVICES: [(&str, &str, ServiceKind, &str); 10] = [
    (IN_BODY, "\"distribution\" : \"opensearch\"", ServiceKind::Opensearch, "number"),
    ("www-authenticate", "opensearch", ServiceKind::Opensearch, ""),
    (IN_BODY, "you know, for search", ServiceKind::Elasticsearch, "number"),
    ("x-elastic-product", "elasticsearch", ServiceKind::Elasticsearch, ""),
    (IN_BODY, "\"etcdserver\":", ServiceKind::Etcd, "etcdserver"),
    (IN_BODY, "mongodb over http", ServiceKind::Mongodb, ""),
    (IN_BODY, "grpc requires http/2", ServiceKind::Grpc, ""),
    ("content-type", "application/grpc", ServiceKind::Grpc, ""),
    (IN_BODY, "to https port", ServiceKind::Tls, ""),
    (IN_BODY, "to an https server", ServiceKind::Tls, ""),
];

/// The first match counts: applications before frameworks, frameworks before servers.
const FRAMEWORKS: [(&str, &str, &str); 50] = [
    (IN_BODY, "this hub speaks https", "connect hub"),
    (IN_BODY, "grafanabootdata", "Grafana"),
    (IN_BODY, "prometheus time series", "Prometheus"),
    (IN_BODY, "alertmanager</title>", "Alertmanager"),
    (IN_BODY, "data-jupyter", "Jupyter"),
    (IN_BODY, "jupyter server", "Jupyter"),
    (IN_BODY, "jupyter-config-data", "Jupyter"),
    ("kbn-name", "", "Kibana"),
    ("x-jenkins", "", "Jenkins"),
    ("server", "minio", "MinIO"),
    ("docker-distribution-api-version", "", "Docker registry"),
    ("x-influxdb-version", "", "InfluxDB"),
    ("x-clickhouse-summary", "", "ClickHouse"),
    (IN_BODY, "\"couchdb\":\"welcome\"", "CouchDB"),
    (IN_BODY, "ollama is running", "Ollama"),
    (IN_BODY, "rabbitmq management", "RabbitMQ management"),
    (IN_BODY, "gitea: git with", "Gitea"),
    (IN_BODY, "wp-content/", "WordPress"),
    ("x-drupal-cache", "", "Drupal"),
    (IN_BODY, "streamlit", "Streamlit"),
    (IN_BODY, "gradio_config", "Gradio"),
    (IN_BODY, "/@vite/client", "Vite"),
    ("x-powered-by", "next.js", "Next.js"),
    (IN_BODY, "/_next/", "Next.js"),
    ("x-powered-by", "nuxt", "Nuxt"),
    (IN_BODY, "/_nuxt/", "Nuxt"),
    (IN_BODY, "__sveltekit", "SvelteKit"),
    (IN_BODY, "/_astro/", "Astro"),
    (IN_BODY, "astro-island", "Astro"),
    (IN_BODY, "___gatsby", "Gatsby"),
    (IN_BODY, "__remixcontext", "Remix"),
    (IN_BODY, "ng-version=", "Angular"),
    (IN_BODY, "csrfmiddlewaretoken", "Django"),
    (IN_BODY, "django", "Django"),
    (IN_BODY, "authenticity_token", "Rails"),
    (IN_BODY, "ruby on rails", "Rails"),
    ("x-runtime", "0.", "Rails"),
    ("set-cookie", "laravel_session", "Laravel"),
    (IN_BODY, "whitelabel error page", "Spring Boot"),
    (IN_BODY, "\"status\":404,\"error\":\"not found\",\"path\":\"/\"", "Spring Boot"),
    ("x-application-context", "", "Spring Boot"),
    ("server", "werkzeug", "Flask"),
    (IN_BODY, "{\"detail\":\"not found\"}", "FastAPI"),
    ("x-powered-by", "express", "Express"),
    (IN_BODY, "<pre>cannot get /</pre>", "Express"),
    ("x-aspnet-version", "", "ASP.NET"),
    ("server", "kestrel", "ASP.NET Core"),
    ("x-powered-by", "asp.net", "ASP.NET"),
    ("x-powered-by", "php", "PHP"),
    ("server", "php", "PHP"),
];

/// `None` if this is not an HTTP response, or not yet.
pub fn read(said: &[u8]) -> Option<WebPage> {
    let head = parse_response(said).ok()??;
    let (body, is_ended) = content(said, &head)?;
    let text = String::from_utf8_lossy(&body);
    let folded = text.to_ascii_lowercase();
    let marked = |place: &str, mark: &str| match place {
        IN_BODY => folded.contains(mark),
        field => head.fields.all(field).any(|value| text_of(value).to_ascii_lowercase().contains(mark)),
    };
    let kind = HTTP_SERVICES.iter().find(|(place, mark, ..)| marked(place, mark));
    // An error page's title names the error, not the site.
    let title = title(&text, &folded).filter(|_| head.status < 400);
    Some(WebPage {
        server: head.fields.all("server").next().map(shown).filter(|server| !server.is_empty()),
        framework: FRAMEWORKS
            .iter()
            .find(|(place, mark, _)| marked(place, mark))
            .map(|found| found.2.to_owned()),
        kind: kind.map(|found| found.2),
        version: kind.and_then(|found| json_text(&text, found.3)),
        location: if text.starts_with(BARE_404) { Some("/version".to_owned()) } else { location(&head) },
        is_whole: is_ended || said.len() >= WEB_PAGE_LIMIT,
        title,
    })
}

fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// The body as far as it has arrived, and whether it is complete.
fn content(said: &[u8], head: &ResponseHead<'_>) -> Option<(Vec<u8>, bool)> {
    let mut walker = BodyWalker::new(response_body("GET", head).ok()?);
    let (mut content, mut at) = (Vec::new(), head.length);
    while !walker.ended() && at < said.len() {
        let Ok(step) = walker.step(&said[at..]) else { break };
        content.extend_from_slice(&said[at..][step.payload]);
        if step.used == 0 {
            break;
        }
        at += step.used;
    }
    Some((content, walker.ended()))
}

/// `folded` is `text` in lower case, with the same byte positions.
fn title(text: &str, folded: &str) -> Option<String> {
    let start = folded.find("<title")?;
    let start = start + folded[start..].find('>')? + 1;
    let inner = &text[start..start + folded[start..].find("</title")?];
    let spelt =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " "), ("&amp;", "&")];
    let plain = spelt.iter().fold(inner.to_owned(), |text, (entity, plain)| text.replace(entity, plain));
    Some(shown(plain.as_bytes())).filter(|title| !title.is_empty())
}

impl WebPage {
    /// This page's values, filled up with those of the page that redirected to it.
    pub fn or(self, before: Self) -> Self {
        Self {
            title: self.title.or(before.title),
            server: self.server.or(before.server),
            framework: self.framework.or(before.framework),
            kind: self.kind.or(before.kind),
            version: self.version.or(before.version),
            ..before
        }
    }
}

/// Only a path: a redirect to another service is not followed.
fn location(head: &ResponseHead<'_>) -> Option<String> {
    let value = str::from_utf8(head.fields.one("location").ok()?.filter(|_| head.status / 100 == 3)?).ok()?;
    let is_path = value.starts_with('/') && !value.starts_with("//") && value.len() <= 1024;
    (is_path && value.bytes().all(|byte| byte.is_ascii_graphic())).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(head: &str, body: &str) -> WebPage {
        let said = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let page = read(said.as_bytes()).unwrap();
        assert!(page.is_whole);
        for part in 0..said.len() {
            let early = read(&said.as_bytes()[..part]);
            assert!(early.is_none_or(|early| !early.is_whole), "{said} at {part}");
        }
        page
    }

    #[test]
    fn titles_are_read_and_cleaned() {
        for (body, title) in [
            ("<html><head><title>Next.js App</title>", Some("Next.js App")),
            ("<TITLE lang=en>\n a &amp; b\u{1b}[31m &lt;c&gt;\n</TITLE>", Some("a & b [31m <c>")),
            ("<title></title>", None),
            ("<title>never closed", None),
            ("no title", None),
            ("<svg><title", None),
        ] {
            assert_eq!(page("200 OK", body).title.as_deref(), title, "{body}");
        }
        let long = page("200 OK", &format!("<title>{}</title>", "é".repeat(500))).title.unwrap();
        assert_eq!(long.chars().count(), 80);
        assert_eq!(page("404 Not Found", "<title>404</title>").title, None);
    }

    #[test]
    fn frameworks_are_known_by_their_marks() {
        for (head, body, framework) in [
            ("200 OK\r\nX-Powered-By: Next.js", "", "Next.js"),
            ("200 OK", "<script src=/_next/static/a.js>", "Next.js"),
            ("200 OK", "<script type=module src=\"/@vite/client\">", "Vite"),
            ("200 OK", "<script src=/_nuxt/entry.js>", "Nuxt"),
            ("404 Not Found\r\nX-Powered-By: Express", "Cannot GET /", "Express"),
            ("200 OK", "<meta name=csrf-param content=authenticity_token>", "Rails"),
            ("200 OK", "<input type=hidden name=csrfmiddlewaretoken>", "Django"),
            ("404 Not Found", "<h1>Whitelabel Error Page</h1>", "Spring Boot"),
            ("200 OK", "<script>window.grafanaBootData = {}", "Grafana"),
            (
                "200 OK",
                "<title>Prometheus Time Series Collection and Processing Server</title>",
                "Prometheus",
            ),
            ("200 OK", "<body data-jupyter-api-token=x>", "Jupyter"),
            ("404 NOT FOUND\r\nServer: Werkzeug/2.2.2 Python/3.11", "", "Flask"),
            ("404 Not Found\r\nServer: uvicorn", "{\"detail\":\"Not Found\"}", "FastAPI"),
            ("426 Upgrade Required", "{\"error\":\"This hub speaks https\"}", "connect hub"),
        ] {
            assert_eq!(page(head, body).framework.as_deref(), Some(framework), "{head} {body}");
        }
        let bare = page("200 OK\r\nServer: nginx/1.22.1", "hello");
        assert_eq!((bare.framework, bare.server.as_deref()), (None, Some("nginx/1.22.1")));
    }

    #[test]
    fn services_that_speak_http_are_told_from_web_sites() {
        let elastic =
            "{\n  \"version\" : {\n \"number\" : \"8.11.1\"\n },\n \"tagline\" : \"You Know, for Search\"\n}";
        let search = "{ \"version\" : { \"distribution\" : \"opensearch\", \"number\" : \"2.11.0\" } }";
        for (head, body, kind, version) in [
            ("200 OK", elastic, ServiceKind::Elasticsearch, Some("8.11.1")),
            ("401 Unauthorized\r\nX-elastic-product: Elasticsearch", "", ServiceKind::Elasticsearch, None),
            ("200 OK", search, ServiceKind::Opensearch, Some("2.11.0")),
            (
                "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"OpenSearch Security\"",
                "",
                ServiceKind::Opensearch,
                None,
            ),
            (
                "200 OK",
                "{\"etcdserver\":\"3.4.23\",\"etcdcluster\":\"3.4.0\"}",
                ServiceKind::Etcd,
                Some("3.4.23"),
            ),
            (
                "200 OK",
                "It looks like you are trying to access MongoDB over HTTP on",
                ServiceKind::Mongodb,
                None,
            ),
            ("505 HTTP Version Not Supported", "gRPC requires HTTP/2", ServiceKind::Grpc, None),
            ("400 Bad Request", "The plain HTTP request was sent to HTTPS port", ServiceKind::Tls, None),
            ("400 Bad Request", "Client sent an HTTP request to an HTTPS server.", ServiceKind::Tls, None),
        ] {
            let page = page(head, body);
            assert_eq!((page.kind, page.version.as_deref()), (Some(kind), version), "{head} {body}");
        }
    }

    #[test]
    fn only_paths_of_the_same_service_are_followed() {
        for (location, followed) in [
            ("/login?next=%2F", true),
            ("//elsewhere/", false),
            ("http://elsewhere/", false),
            ("login", false),
            ("/a b", false),
        ] {
            let page = page(&format!("302 Found\r\nLocation: {location}"), "");
            assert_eq!(page.location.as_deref(), followed.then_some(location));
        }
        assert_eq!(page("200 OK\r\nLocation: /x", "").location, None);
        assert_eq!(page("404 Not Found", "404 page not found\n").location.as_deref(), Some("/version"));
    }

    #[test]
    fn a_page_in_chunks_is_read_whole() {
        let said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n<title>Ne\r\na\r\nxt</title>\r\n0\r\n\r\n";
        let page = read(said).unwrap();
        assert_eq!((page.title.as_deref(), page.is_whole), (Some("Next"), true));
        assert_eq!(read(b"SSH-2.0-x\r\n\r\n"), None);
    }
}
