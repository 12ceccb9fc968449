"""Fails if pip-audit finds known vulnerabilities in what is installed in a folder.

pip-audit itself says "No known vulnerabilities found" also where it could ask nobody.
"""

import json
import subprocess
import sys

OURS = "monocloud-async"

options = ["--format", "json", "--progress-spinner", "off", "--path", sys.argv[1]]
run = subprocess.run(
    [sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False
)
if run.returncode not in {0, 1}:  # 1: vulnerabilities, or no connection
    sys.exit(f"pip-audit failed:\n{run.stderr}")
try:
    packages = json.loads(run.stdout)["dependencies"]
except ValueError:
    why = (run.stderr.strip() or "it said nothing").splitlines()[-1]
    print(f"NOTHING WAS AUDITED, pip-audit gave no answer: {why}")
    sys.exit()

packages = [package for package in packages if package["name"] != OURS]
skipped = [package for package in packages if "skip_reason" in package]
vulnerable = [package for package in packages if package.get("vulns")]
for package in vulnerable:
    for vuln in package["vulns"]:
        fixed = ", ".join(vuln["fix_versions"]) or "no version"
        print(f"{package['name']} {package['version']}: {vuln['id']}, fixed in {fixed}")
if not packages or len(skipped) == len(packages):
    why = skipped[0]["skip_reason"] if skipped else "the folder is empty"
    print(f"NOTHING WAS AUDITED of {len(packages)} packages: {why}")
elif skipped:
    names = ", ".join(package["name"] for package in skipped)
    print(f"ONLY A PART WAS AUDITED, without {len(skipped)} of {len(packages)} packages: {names}")
elif not vulnerable:
    print(f"{len(packages)} packages audited, no known vulnerabilities")
sys.exit(bool(vulnerable))
