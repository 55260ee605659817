package api

import "context"

const pathNotify = "/v1/notify"

type deadInput struct {
	Target string `query:"target" maxLength:"63" doc:"absent means all"`
	Stale  bool   `query:"stale" doc:"answer from the node's own state, which may be behind"`
}

func (h *Handler) notifyRoutes(r *registrar) {
	b := h.backend
	get(r, "listNotifyTargets", pathNotify+"/targets", "Who is told what happens, and how far each is; for admins",
		func(ctx context.Context, in *noInput) (NotifyTargets, error) {
			return b.NotifyTargets(ctx, callFrom(ctx, in.Stale))
		})
	get(r, "listDeadLetters", pathNotify+"/dead", "Notifications that were given up; for admins",
		func(ctx context.Context, in *deadInput) (DeadLetters, error) {
			return b.DeadLetters(ctx, callFrom(ctx, in.Stale), in.Target)
		})
	post(r, "replayNotifications", pathNotify+"/targets/{id}/replay", "Send dead letters again, and go on with a target that wanted no more; for admins",
		func(ctx context.Context, in *postIDInput[ReplayInput]) (NotifyTarget, error) {
			return b.ReplayNotifications(ctx, callFrom(ctx, false), in.ID, in.Body)
		})
	post(r, "forgetNotifyTarget", pathNotify+"/targets/{id}/forget", "Forget a target, with its dead letters; for admins",
		func(ctx context.Context, in *actionInput) (NotifyTarget, error) {
			return b.ForgetTarget(ctx, callFrom(ctx, false), in.ID)
		})
	post(r, "testNotifyTarget", pathNotify+"/targets/{id}/test", "Send a target a message that says nothing; for admins",
		func(ctx context.Context, in *actionInput) (NotifyTested, error) {
			return b.TestTarget(ctx, callFrom(ctx, false), in.ID)
		})
}
