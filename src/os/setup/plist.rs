//! The text of a property list, as launchd reads it.

pub fn plist(
    label: &str,
    user: Option<&str>,
    command: &[String],
    environment: &[&(String, String)],
) -> String {
    let command: String =
        command.iter().map(|word| format!("    <string>{}</string>\n", xml(word))).collect();
    let environment: String = environment
        .iter()
        .map(|(name, value)| format!("    <key>{}</key><string>{}</string>\n", xml(name), xml(value)))
        .collect();
    let user = user.map(|user| format!("  <key>UserName</key><string>{}</string>\n", xml(user)));
    let user = user.unwrap_or_default();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">
<plist version=\"1.0\">
<dict>
  <key>Label</key><string>{label}</string>
{user}  <key>ProgramArguments</key>
  <array>
{command}  </array>
  <key>EnvironmentVariables</key>
  <dict>
{environment}  </dict>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>SuccessfulExit</key><false/></dict>
  <key>Umask</key><integer>63</integer>
</dict>
</plist>
"
    )
}

fn xml(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.chars().filter(|c| !c.is_control()).collect()
}
