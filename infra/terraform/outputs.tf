output "dvc_remote" {
  description = "For `uv run emuedit remote init`."
  value       = "s3://${aws_s3_bucket.data.id}/${var.prefix}"
}

output "trainer_role" {
  description = "ARN of the role that reads and writes."
  value       = aws_iam_role.trainer.arn
}

output "server_role" {
  description = "ARN of the role that only reads."
  value       = aws_iam_role.server.arn
}
