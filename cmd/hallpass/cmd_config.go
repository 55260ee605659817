package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/hallpass/hallpass/internal/config"
)

func (a *app) newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Configuration files: validate"}
	var kind string
	validate := &cobra.Command{
		Use:   "validate FILE",
		Short: "Check a server's, proxy's, signer's, agent's or the Slack bridge's configuration file, with every mistake at once",
		Long: `Check a server's, proxy's, signer's, agent's or the Slack bridge's configuration file: every mistake at once, each with
its line. The environment is left out, and the files that it names are not opened.`,
		Args: exactArgs("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			if kind == "" {
				var err error
				if kind, err = kindOf(args[0]); err != nil {
					return err
				}
			}
			if err := validateFile(kind, args[0]); err != nil {
				return err
			}
			return a.print(map[string]any{"valid": true, "kind": kind}, func(w *tabular) {
				w.line("%s is a valid %s configuration", args[0], kind)
			})
		},
	}
	validate.Flags().StringVar(&kind, "kind", "", "server, proxy, signer, slack or agent (default: by the keys it has)")
	cmd.AddCommand(validate)
	return cmd
}

func validateFile(kind, file string) error {
	switch kind {
	case "server":
		s, err := loadServer(file)
		if err != nil {
			return err
		}
		return s.check()
	case "proxy":
		s, err := loadProxy(file)
		if err != nil {
			return err
		}
		return s.Check()
	case "signer":
		s, err := loadSigner(file)
		if err != nil {
			return err
		}
		return s.check()
	case "slack":
		s, err := loadSlack(file)
		if err != nil {
			return err
		}
		return s.check()
	case "agent":
		_, err := loadAgent(file)
		return err
	default:
		return usagef("--kind %s: want server, proxy, signer, slack or agent", kind)
	}
}

// kindOf guesses from the keys whose file it is: only a proxy has an upstream.
func kindOf(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	server, proxy, signer, several, slack := 0, 0, 0, false, false
	keys, err := config.TopKeys(file, text)
	if err != nil {
		return "", err
	}
	for _, key := range keys {
		switch key {
		case "node", "data_dir", "keys_dir", "manifest", "dev":
			server++
		case "service", "upstream", "hosts", "identity_bundle", "access_log", "revocation":
			proxy++
		case "ca_dir", "life":
			signer++
		case "services": // of an agent, or of a proxy, which has more to say
			several = true
		case "team", "signing_secret_file":
			slack = true
		}
	}
	switch {
	case several && server+proxy+signer == 0:
		return "agent", nil
	case slack && server+proxy+signer == 0:
		return "slack", nil
	case signer > max(server, proxy):
		return "signer", nil
	case server > proxy:
		return "server", nil
	case proxy > server:
		return "proxy", nil
	default:
		return "", fmt.Errorf("%s: %w: give --kind server, --kind proxy, --kind signer, --kind slack or --kind agent", file, errUnclear)
	}
}

// errUnclear is returned when a file's keys do not say whose configuration it is.
var errUnclear = errors.New("neither a server's nor a proxy's nor a signer's keys")
